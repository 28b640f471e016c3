"""Files and hub data sets -> raw rows with their location, through the `datasets` library.

Local parquet is always read in the library's streaming mode, which writes no cache: a read-only
home or a full disk then cannot stop a run whose data lies right there. JSON is read and parsed
here, because the library's own JSON reader guesses one type per column: it turns dates into
timestamps and lists into strings, and golden answers must stay what was written.
"""

from __future__ import annotations

import copy
import csv
import functools
import glob
import itertools
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow
from datasets import config
from datasets.exceptions import DatasetsError

from zerosearch.core.errors import InputError
from zerosearch.core.hub import HubRefusal, offline, reach_dataset
from zerosearch.data.json_lines import JsonLines
from zerosearch.data.json_text import brief, parse_json
from zerosearch.data.parquet_files import ROWS_PER_TABLE, open_parquet
from zerosearch.data.whole_files import FILE_SUFFIXES, ROWS_KEY, json_array, table

READ_ERRORS = (
    OSError,
    EOFError,
    MemoryError,
    ArithmeticError,  # a date that Python does not have
    ValueError,  # also columns that do not fit
    zlib.error,
    csv.Error,
    pyarrow.ArrowException,
    DatasetsError,
)
Parse = Callable[[str, int, Any], tuple[str, Mapping[str, Any] | None]]


class RowTable(Protocol):
    """An opened file: its raw rows in order, with a position that can be saved while reading."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@dataclass(kw_only=True, slots=True, frozen=True)
class RowFile:
    """One local file, or one split of a hub data set, that has not been opened yet."""

    name: str  # as shown in errors
    open: Callable[[], RowTable]
    parse: Parse  # (name, index, raw row) -> location, row or None for a blank line

    def read(self, table: RowTable, start: int) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        """Rows of an opened table.

        Args:
            table: what `open` returned, perhaps moved by `load_state_dict`.
            start: index of the table's next row.

        Yields:
            Index in the file (from 0, blank lines count), location for errors, row.

        Raises:
            InputError: the file cannot be read to its end, or a line is not a JSON object.
        """
        for index, raw in self._guarded(table, start):
            location, row = self.parse(self.name, index, raw)
            if row is not None:
                yield index, location, row

    def read_all(self) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        """All rows, ten times as fast as `read` for wide rows, without a position to save."""
        rows: Any = self._opened()
        if isinstance(rows, (datasets.Dataset, datasets.IterableDataset)):
            tables: Any = rows.with_format("arrow").iter(batch_size=ROWS_PER_TABLE)
            rows = (row for batch in tables for row in batch.to_pylist())
        yield from self.read(rows, 0)

    def opened(self, state: dict[str, Any] | None) -> RowTable:
        """Open the file at its start (`state` None) or at a saved position."""
        table = self._opened()
        if state is not None:
            table.load_state_dict(copy.deepcopy(state))  # the library changes what it gets
        return table

    def _opened(self) -> RowTable:
        try:
            return self.open()
        except InputError:
            raise
        except READ_ERRORS as error:
            raise self._unreadable(error) from error

    def _guarded(self, items: Any, start: int) -> Iterator[tuple[int, Any]]:
        iterator = iter(items)
        for index in itertools.count(start):
            try:
                item = next(iterator)
            except StopIteration:
                return
            except InputError:
                raise
            except READ_ERRORS as error:
                raise self._unreadable(error, f" after {index} rows") from error
            yield index, item

    def _unreadable(self, error: Exception, place: str = "") -> InputError:
        said = " ".join(str(error).split())[:300]
        return InputError(
            f"{self.name}: cannot be read{place} ({type(error).__name__}: {said}); the file is "
            f"corrupt, cut short or of another format than its name says: copy or export it again"
        )


def local_files(path: str) -> list[RowFile] | None:
    """Files that `path` names, or None if it can only be the name of a hub data set.

    Raises:
        InputError: the file is missing, a directory, or of a format that is not supported.
    """
    expanded = os.path.expanduser(path)
    if glob.has_magic(expanded) and not os.path.exists(expanded):
        matches = sorted(glob.glob(expanded, recursive=True))
        if not matches:
            raise InputError(f"data file pattern {path!r} matches no file; check the path")
        return [_row_file(match) for match in matches]
    if os.path.isdir(expanded):
        raise InputError(
            f"data file {path!r} is a directory; name its files, such as "
            f"{os.path.join(path, '*.parquet')}"
        )
    if os.path.exists(expanded):
        return [_row_file(expanded)]
    is_path = path.startswith(("/", ".", "~")) or path.count("/") > 1
    if is_path or path.endswith(tuple(_FORMATS)):
        raise InputError(
            f"data file {path!r} does not exist (looked in {os.getcwd()}); check the path or give "
            f"data.files=[...]"
        )
    return None


def hub_file(path: str, name: str | None, split: str, *, streaming: bool) -> RowFile:
    """One split of a hub data set; nothing is fetched before it is opened.

    Where the hub cannot be reached, what the library has in its cache is read. Where that cache
    cannot be written the split is streamed instead of downloaded.
    """

    def open_hub() -> Any:
        datasets.disable_progress_bars()
        scratch = _scratch_cache()
        away: HubRefusal | None = None
        try:
            reach_dataset(path)
        except HubRefusal as why:
            if not why.unreachable:
                raise _not_had(why) from why
            away = why
        try:
            with offline(away is not None):  # else the library tries for a minute
                return datasets.load_dataset(
                    path,
                    name,
                    split=split,
                    streaming=streaming or scratch is not None,
                    cache_dir=scratch,
                )
        except Exception as error:  # of several HTTP libraries, by the version of the hub's
            raise _not_had(away or f"{type(error).__name__}: {error}") from error

    def _not_had(reason: object) -> InputError:
        return InputError(
            f"data set {path!r} (config {name!r}, split {split!r}) is neither a local file nor "
            f"could it be loaded from the hub ({reason}); check name and split, or without a "
            "network name a local file in its place (`zerosearch data` fetches the public sets)"
        )

    return RowFile(name=f"{path} [{split}]", open=open_hub, parse=_parse_record)


def _parse_record(name: str, index: int, raw: Any) -> tuple[str, Mapping[str, Any]]:
    location = f"{name}, row {index} (counting from 0)"
    if not isinstance(raw, Mapping):
        raise InputError(f"{location}: is {brief(raw)}; it must be an object with named fields")
    return location, raw


def _parse_line(name: str, index: int, raw: bytes) -> tuple[str, Mapping[str, Any] | None]:
    location = f"{name}, line {index + 1}"
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{location}: not UTF-8 ({error}); save the file as UTF-8") from error
    if not text:
        return location, None
    row = parse_json(text, name, index + 1)
    if not isinstance(row, Mapping):
        raise InputError(f"{location}: is {text!r:.80}; it must be an object with named fields")
    return location, row


def _parquet(path: str) -> RowFile:
    def opened() -> Any:
        return open_parquet(path, _scratch_cache())

    return RowFile(name=path, open=opened, parse=_parse_record)


def _json_lines(path: str) -> RowFile:
    return RowFile(name=path, open=lambda: JsonLines(path), parse=_parse_line)


def _json(path: str) -> RowFile:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        start = file.read(4096).lstrip()
    if start.startswith("[") or re.match(rf'\{{\s*"{ROWS_KEY}"\s*:\s*\[', start):
        return RowFile(name=path, open=lambda: json_array(path), parse=_parse_record)
    return _json_lines(path)


def _separated(separator: str) -> Callable[[str], RowFile]:
    return lambda path: RowFile(name=path, open=lambda: table(path, separator), parse=_parse_record)


_FORMATS: dict[str, Callable[[str], RowFile]] = {
    ".parquet": _parquet,
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
}
assert tuple(_FORMATS) == FILE_SUFFIXES


def _row_file(path: str) -> RowFile:
    for suffix, make in _FORMATS.items():
        if path.endswith(suffix):
            try:
                return make(path)
            except OSError as error:  # JSON is looked into
                raise InputError(
                    f"data file {path!r} cannot be read ({error.strerror}); name a file that can, "
                    "or a pattern without it"
                ) from error
    raise InputError(
        f"data file {path!r} has extension {Path(path).suffix!r}, which is not supported; convert "
        f"it to one of {', '.join(_FORMATS)}"
    )


def _scratch_cache() -> str | None:
    """None where the library's cache is writable, else a folder that is."""
    default = config.HF_DATASETS_CACHE
    try:
        os.makedirs(default, exist_ok=True)
        writable = os.access(default, os.W_OK)
    except OSError:
        writable = False
    return None if writable else _scratch_folder().name


@functools.cache
def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="zerosearch-")  # removed when the process ends
