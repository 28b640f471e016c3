"""Importing large libraries without the pauses of Python's garbage collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Within, garbage is not collected; what was imported is never looked through again.

    The libraries are about a million objects. Collecting while they are loaded is a quarter of the
    start of a command (1.5 of 6 seconds), and a full collection would stop a run for half a second.
    """
    if "torch" in sys.modules:  # the largest: little is left to import
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
