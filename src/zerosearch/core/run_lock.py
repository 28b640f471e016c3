"""One writer at a time in a folder, of a run or of public data in the making.

The lock is the kernel's: it is gone with the process that holds it, however that ends, also on
network file systems whose server keeps locks. The file says who holds it, or held it last.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zerosearch.core.errors import InputError
from zerosearch.core.files import remove_leftovers

LOCK = ".lock"  # in the folder

log = logging.getLogger(__name__)


def this_process() -> dict[str, str | int]:
    """Number and host of this process, as a lock and a summary name it."""
    return {"process": os.getpid(), "host": socket.gethostname()}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; what an earlier process left half-written there is removed.

    Raises:
        InputError: another process holds it; says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _take(folder)
    try:
        if said := _read(descriptor):
            log.warning("%s: %s did not end in order", folder, _name(said))
        remove_leftovers(folder)
        held = {**this_process(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(descriptor, 0)  # the one before may have written more
        os.pwrite(descriptor, json.dumps(held).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def check_unlocked(folder: Path) -> None:
    """Raise an InputError where another process holds the lock of a folder."""
    if (folder / LOCK).exists():
        os.close(_take(folder))


def _take(folder: Path) -> int:
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # of this process alone: a process that it forks and that outlives it does not hold it
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        said = _read(descriptor)
        os.close(descriptor)
        raise InputError(
            f"{folder}: {_name(said)} is writing to this folder: wait for it, or stop it first"
        ) from error
    except OSError as error:  # a file system without locks
        said = _read(descriptor)
        if said and _may_live(said):
            os.close(descriptor)
            raise InputError(
                f"{folder}: {_name(said)} may be writing to this folder, whose file system has "
                f"no locks ({error.strerror}): where that process is dead, remove {folder / LOCK}"
            ) from error
    return descriptor


def _read(descriptor: int) -> dict[str, str | int]:
    """Who holds a lock, or held it and did not end in order; empty where nobody is named."""
    with suppress(ValueError, RecursionError):
        found = json.loads(os.pread(descriptor, 4096, 0))
        return found if isinstance(found, dict) else {}
    return {}


def _name(said: dict[str, str | int]) -> str:
    if not said:
        return "another process"
    return f"process {said.get('process')} on {said.get('host')} (since {said.get('since')})"


def _may_live(said: dict[str, str | int]) -> bool:
    if said.get("host") != socket.gethostname():
        return True
    return said.get("process") != os.getpid() and Path(f"/proc/{said.get('process')}").exists()
