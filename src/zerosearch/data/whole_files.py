"""Data files that are read whole, since such files are small: JSON arrays, CSV, TSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from typing import Any

from zerosearch.core.errors import InputError

FILE_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv")
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
    """The rows of a JSON file that is an array, or an object with one under `ROWS_KEY`."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            values = json.load(file)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column "
                f"{error.colno}); fix the line"
            ) from error
    return WholeFile(values if isinstance(values, list) else values[ROWS_KEY])


def table(path: str, separator: str) -> WholeFile:
    """The rows of a file of separated values with a heading; all values are strings."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=separator, strict=True))
    for index, row in enumerate(rows):
        if None in row or None in row.values():
            raise InputError(
                f"{path}, row {index} (counting from 0): it has more or fewer fields than the "
                "heading; put quotes around fields that hold the separator"
            )
    return WholeFile(rows)
