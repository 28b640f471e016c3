"""Data files that are read whole, since such files are small: JSON arrays, CSV, TSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.data.json_text import brief, parse_json

FILE_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv")
MAX_BYTES = 2**30
ROWS_KEY = "Data"  # of a JSON file that is one object, as TriviaQA's own


class WholeFile:
    """The rows of a file that is read whole, since such files are small."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items
        self._next = 0

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        while self._next < len(self._items):
            self._next += 1
            yield self._items[self._next - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._next = state_dict["next"]


def json_array(path: str) -> WholeFile:
    """The rows of a JSON file that is an array, or an object with one under `ROWS_KEY`.

    Raises:
        InputError: the file is too large, no JSON, or holds neither.
    """
    _check_size(path)
    with open(path, encoding="utf-8-sig") as file:
        values = parse_json(file.read(), path)
    rows = values.get(ROWS_KEY) if isinstance(values, dict) else values
    if not isinstance(rows, list):
        raise InputError(
            f"{path}: {ROWS_KEY!r} is {brief(rows)}; it must be an array of objects, or write one "
            "object per line"
        )
    return WholeFile(rows)


def table(path: str, separator: str) -> WholeFile:
    """The rows of a file of separated values with a heading; all values are strings.

    Raises:
        InputError: the file is too large, a name stands twice in the heading, or a row does not
            fit it.
    """
    _check_size(path)
    rows: list[dict[str, str]] = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=separator, strict=True)
        try:
            names = list(reader.fieldnames or [])
            rows.extend(reader)
        except csv.Error as error:
            raise InputError(
                f"{path}, line {reader.line_num + 1}: cannot be read ({error}); put quotes around "
                "fields with quotes or line breaks, and double the quotes inside"
            ) from error
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path}: the heading has {twice[0]!r} twice; rename one column")
    for index, row in enumerate(rows):
        if None in row or None in row.values():
            raise InputError(
                f"{path}, row {index} (counting from 0): it has more or fewer fields than the "
                "heading; put quotes around fields that hold the separator"
            )
    return WholeFile(rows)


def _check_size(path: str) -> None:
    size = os.path.getsize(path)
    if size > MAX_BYTES:
        raise InputError(
            f"{path} has {size >> 20} MiB, and files of its kind are read whole, up to "
            f"{MAX_BYTES >> 20} MiB: write it as .jsonl or .parquet, of any size"
        )
