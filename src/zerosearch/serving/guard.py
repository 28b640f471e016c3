"""Runs a command that must not outlive its parent: `python -m zerosearch.serving.guard COMMAND`.

The parent holds the other end of this process's standard input. When that end closes, because the
parent closed it or died in whatever way (kill -9 included), the command and all its descendants are
ended. A second process does that where this one is killed itself. The command runs in a session of
its own, so that Ctrl-C in a terminal reaches the parent alone, which may have a training step to
finish with the command's help.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

GRACE_S = 20.0  # for SIGTERM to work; a server of a large model has worker processes to end
_POLL_S = 0.2


def guard(command: list[str]) -> int:
    """Run a command until it ends or the parent goes; returns its exit code as a shell shows it."""
    signal.signal(signal.SIGTERM, _exit)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return 127  # as a shell says it
    with _second_guard(child.pid):
        try:
            while child.poll() is None and _parent_holds_on():
                pass
        finally:
            _end(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _parent_holds_on() -> bool:
    readable, _, _ = select.select([0], [], [], _POLL_S)
    return not readable or bool(os.read(0, 4096))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask the command to end, then kill what is left of its process group."""
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
    with suppress(ProcessLookupError):  # nothing is left
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@contextmanager
def _second_guard(command: int) -> Iterator[None]:
    """A process that ends the command, by its number, when this one ends inside (kill -9)."""
    watched, held = os.pipe()
    if (watcher := os.fork()) == 0:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        os.close(held)
        if not os.read(watched, 1):  # closed without a word
            _end_orphan(command)
        os._exit(0)
    os.close(watched)
    try:
        yield
    finally:
        with suppress(BrokenPipeError):  # the watcher was killed
            os.write(held, b".")
        os.close(held)
        os.waitpid(watcher, 0)


def _end_orphan(command: int) -> None:
    """As `_end`, for a process that is not this one's child."""
    end = time.monotonic() + GRACE_S
    with suppress(ProcessLookupError):
        os.kill(command, signal.SIGTERM)
        while time.monotonic() < end:
            os.kill(command, 0)  # raises once it is gone
            time.sleep(_POLL_S)
    with suppress(ProcessLookupError):
        os.killpg(command, signal.SIGKILL)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
