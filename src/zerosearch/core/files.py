"""Files that are whole or absent, whatever kills the process that writes them."""

from __future__ import annotations

import glob
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from zerosearch.core.errors import FileError

GIB = 1024**3
_LEFTOVER = re.compile(r"\..+\.(tmp|part|link)")  # what a killed process was writing


@contextmanager
def replacing(path: Path, intact: str = "what was there before is intact") -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends without an error.

    The bytes go to a hidden file in the same folder, are flushed to the disk and then renamed, so
    that a reader, or a crash at any moment, sees the earlier file or the new one, never a part.
    Its name is this writer's alone: of several the last one wins, with a whole file.

    Args:
        path: target; its folder is made where it is missing.
        intact: what is still usable after a failure, for the error message.

    Raises:
        FileError: the file could not be written, for example because the disk is full; the hidden
            file is removed and the message names path, free space and remedy.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise FileError(
            error.errno,
            f"{path} could not be written ({error.strerror or error}; {free_space(path.parent)}): "
            f"free disk space or choose another folder; {intact}",
        ) from error
    finally:
        with suppress(OSError):  # gone after the rename, or never made
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing anywhere in a folder that is now ours alone."""
    for parent, folders, files in os.walk(folder):
        for name in [each for each in folders if _LEFTOVER.fullmatch(each)]:
            folders.remove(name)
            shutil.rmtree(Path(parent, name), ignore_errors=True)
        for name in filter(_LEFTOVER.fullmatch, files):
            Path(parent, name).unlink(missing_ok=True)


def remove_leftovers_of(*paths: Path) -> None:
    """Remove what killed processes were writing for files that are now written by us alone."""
    for path in paths:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            left.unlink(missing_ok=True)


def flush_tree(folder: Path) -> None:
    """Bring every file of `folder`, and the folder, to the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Bring renames inside `folder` to the disk, where its file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse to flush a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_space(folder: Path) -> str:
    """Free space of the disk that holds `folder`, for messages."""
    try:
        return f"{shutil.disk_usage(folder).free / GIB:.2f} GiB free in {folder}"
    except OSError as error:  # the folder itself could not be made
        return f"free space unknown: {error.strerror}"
