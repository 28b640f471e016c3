"""JSON lines that outlive the process which writes them: work done row by row goes on after a kill.

Each row is written with one call and stands under a key of its own. A line that a kill cut short
is taken away when the file is opened again; a line damaged otherwise is an error that names it. The
settings behind the rows lie beside the file, so that rows of two kinds cannot meet in it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zerosearch.core.errors import FileError, InputError
from zerosearch.core.files import remove_leftovers_of, replacing


class Journal:
    """An open file of rows by key; a context manager, and the only writer while it is open.

    Args:
        path: of the file, made with its folders where missing; settings go to
            `<name>.settings.json`.
        key: field of a row that tells it from all others.
        settings: JSON values that decide what rows say; None: any rows may meet.
        later: names of settings, dotted within others, that files of earlier versions lack: there
            they are not compared.

    Raises:
        InputError: another process writes to the file, it holds rows made under other settings,
            or a line is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        key: str,
        settings: Mapping[str, Any] | None = None,
        later: Sequence[str] = (),
    ) -> None:
        self.path = Path(path)
        self._key = key
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            remove_leftovers_of(self.path)
            self.rows: dict[str, dict[str, Any]] = self._read()
            if settings is not None:
                self._check_settings(json.loads(json.dumps(settings)), later)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it is in the file when this returns.

        Raises:
            InputError: there is a row of this key.
            FileError: the disk is full; the rows before are whole.
        """
        key = row[self._key]
        if key in self.rows:
            raise InputError(f"{self.path}: there is a row with {self._key}={key!r} already")
        line, end = _line(row), os.fstat(self._file).st_size
        if os.write(self._file, line) < len(line):
            os.ftruncate(self._file, end)  # else the next row would stand in its line
            os.lseek(self._file, end, os.SEEK_SET)
            raise FileError(f"{self.path}: the last row was cut short; free disk space, run again")
        self.rows[key] = dict(row)

    def arrange(self, keys: Sequence[str]) -> None:
        """Put the rows in the order of their keys, those of no key given last; all or nothing.

        Rows that are written as work ends stand in an order of chance.
        """
        place = {key: number for number, key in enumerate(keys)}
        rows = dict(sorted(self.rows.items(), key=lambda item: place.get(item[0], len(place))))
        if [*rows] == [*self.rows]:
            return
        with replacing(self.path) as file:
            file.write(b"".join(_line(row) for row in rows.values()))
            arranged = os.dup(file.fileno())
            fcntl.flock(arranged, fcntl.LOCK_EX)  # before anybody else can open it
        os.close(self._file)
        self._file, self.rows = arranged, rows

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{self.path}: another process is writing to it; wait for it, or give another file"
            ) from error

    def _read(self) -> dict[str, dict[str, Any]]:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        rows: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line)
                rows[row[self._key]] = row
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise InputError(
                    f"{self.path}, line {number}: no row with a field {self._key!r} "
                    f"({line[:60]!r}); take the line out, or give another file"
                ) from error
        return rows

    def _check_settings(self, settings: dict[str, Any], later: Sequence[str]) -> None:
        path = self.path.with_suffix(".settings.json")
        if path.is_file() and self.rows:
            try:
                saved = _flat(dict(json.loads(path.read_text(encoding="utf-8"))))
            except (ValueError, TypeError, RecursionError) as error:
                raise InputError(
                    f"{path} does not say which settings the rows beside it were made with "
                    f"({error}); give another folder"
                ) from error
            given = _flat(settings)
            lacking = [name for name in later if not any(_is_of(each, name) for each in saved)]
            for name in dict.fromkeys([*given, *saved]):
                if any(_is_of(name, each) for each in lacking):
                    continue
                if saved.get(name) != given.get(name):
                    raise InputError(
                        f"{self.path} holds rows made with {name}={saved.get(name)!r}, and it is "
                        f"{given.get(name)!r} now: set it back, or give another folder"
                    )
            return
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inside = isinstance(value, dict) and value
        found |= _flat(value, f"{above}{name}.") if inside else {f"{above}{name}": value}
    return found


def _is_of(name: str, group: str) -> bool:
    return name == group or name.startswith(f"{group}.")


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
