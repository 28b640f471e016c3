"""Text by key in one SQLite file: bounded, shared by processes, whole after a kill.

The library diskcache does the work. Left to itself it unpickles what it finds and reads, and
removes, files that a row names (CVE-2025-69872): whoever can write to the folder could run code.
Here rows hold text, and anything else in one is an error.
"""

from __future__ import annotations

import logging
import sqlite3
import weakref
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import DBNAME, MODE_RAW, UNKNOWN

from zerosearch.core.errors import ZeroSearchError

GIB = 2**30
# What waits for another process's write is the event loop, so it may not take long.
BUSY_TIMEOUT_S = 1
# What SQLite and diskcache raise over a file in which bytes are others.
_OF_DAMAGE = (sqlite3.Error, ValueError, TypeError, LookupError, AttributeError, OverflowError)

log = logging.getLogger(__name__)


class StoreError(ZeroSearchError):
    """The file cannot be used; says why."""


class TextDisk(diskcache.Disk):
    """How diskcache writes and reads rows: text, in the row itself."""

    def get(self, key: Any, raw: bool) -> str:
        return self.fetch(MODE_RAW if raw else None, None, key, False)

    def store(self, value: str, read: bool, key: Any = UNKNOWN) -> tuple[int, int, None, str]:
        return 0, MODE_RAW, None, value

    def fetch(self, mode: int | None, filename: str | None, value: Any, read: bool) -> str:
        if mode != MODE_RAW or not isinstance(value, str):
            raise StoreError("a row holds something else than text")
        return value

    def remove(self, file_path: str) -> None:
        """Nothing here writes files, so a name in a row is not ours to remove."""


class TextStore:
    """Texts by key, in a folder that any number of processes use at once.

    Args:
        folder: made where it is missing.
        size_gib: bound of the file; the least recently used texts go first.
        changes: whether this process adds texts and notes which are used. Without, it leaves the
            rows as they are.

    Raises:
        StoreError: the folder cannot be written to, or holds something else or damaged.
    """

    def __init__(self, folder: Path, *, size_gib: float, changes: bool) -> None:
        self._warned = False
        try:
            self._cache: Any = diskcache.Cache(
                str(folder),
                timeout=BUSY_TIMEOUT_S,
                disk=TextDisk,
                eviction_policy="least-recently-used" if changes else "none",
                size_limit=int(size_gib * GIB),
                statistics=0,
            )
        except (*_OF_DAMAGE, OSError) as error:
            raise StoreError(str(error)) from error
        weakref.finalize(self, self._cache.close)

    def __len__(self) -> int:
        try:
            return len(self._cache)
        except _OF_DAMAGE as error:
            raise StoreError(str(error)) from error

    def get(self, key: str) -> str | None:
        """The text, or None; None too where other processes keep the file locked.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            return self._cache.get(key)
        except diskcache.Timeout:
            self._warn(f"locked for {BUSY_TIMEOUT_S} s: a text was not looked up")
            return None
        except _OF_DAMAGE as error:
            raise StoreError(str(error)) from error

    def add(self, key: str, text: str) -> str:
        """Keep a text unless there is one; the first to be kept stays.

        Where keeping fails that is said and not raised: the text itself is good.

        Returns:
            The text that the key has now.
        """
        try:
            if not self._cache.add(key, text):
                return self.get(key) or text
        except diskcache.Timeout:
            self._warn(f"locked for {BUSY_TIMEOUT_S} s: a text was not kept")
        except _OF_DAMAGE as error:
            self._warn(f"a text was not kept ({error})")
        return text

    def _warn(self, what: str) -> None:
        level = logging.INFO if self._warned else logging.WARNING
        rest = "" if self._warned else "; should that come again, it is logged as INFO"
        log.log(level, "%s: %s%s", self._cache.directory, what, rest)
        self._warned = True


def holds_store(folder: Path) -> bool:
    """Whether there is a file to read."""
    return (folder / DBNAME).is_file()
