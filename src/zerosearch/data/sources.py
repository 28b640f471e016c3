"""Where questions come from: anything with a label, a weight and `load`.

`QASource` reads files and hub data sets; other sources (the embedded geography questions, your own)
only need to follow `QuestionSource`.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, Positive
from zerosearch.core.seeding import derive_random
from zerosearch.data.rows import DEFAULT_COLUMNS, Columns, row_to_question
from zerosearch.data.whole_files import FILE_SUFFIXES
from zerosearch.types import Question

if TYPE_CHECKING:
    from zerosearch.data.readers import RowFile


class QuestionStream(Protocol):
    """Questions that are read while training, for data that should not be held in memory."""

    def read(self, state: dict[str, Any] | None) -> Iterator[Question]:
        """One pass to the end, from the start (`state` None) or from a saved position."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Position after the last question read: plain containers that a checkpoint can hold."""
        ...


@runtime_checkable
class QuestionSource(Protocol):
    """What `QADataModule` needs of a source of questions.

    `label` identifies the source among those it is mixed with and seeds its order. `weight` is its
    share of the training questions relative to the other sources; None means its size, as if the
    sources were put one after the other.
    """

    @property
    def label(self) -> str: ...

    @property
    def weight(self) -> float | None: ...

    def load(self) -> Sequence[Question] | QuestionStream: ...


@dataclass(kw_only=True, slots=True, frozen=True)
class QASource:
    """Questions from a local file, a pattern of local files, or a hub data set.

    Args:
        path: `.parquet`, `.jsonl`, `.jsonl.gz`, `.json`, `.csv` or `.tsv` file, a glob
            pattern of such files, or the name of a hub data set.
        split: split of a hub data set; files are read whole.
        name: configuration of a hub data set.
        weight: share of the training questions relative to other sources; None: by size.
        streaming: read while training instead of into memory; shuffles within blocks only.
        limit: use this many questions: in memory a fixed selection spread over the whole set (see
            `fixed_selection`), streaming the first ones.
        columns: names of the columns.
        label: identity among mixed sources; default is the file name, or name and configuration of
            the hub data set.
    """

    path: str
    split: str = "train"
    name: str | None = None
    weight: Positive | None = 1.0
    streaming: bool = False
    limit: Count | None = None
    columns: Columns = DEFAULT_COLUMNS
    label: str = ""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(
                f"limit of {self.path!r} is {self.limit}; it must be at least 1, or null for all"
            )
        if not self.label:
            parts = [os.path.basename(self.path) if _is_file(self.path) else self.path, self.name]
            object.__setattr__(self, "label", "/".join(part for part in parts if part))

    def load(self) -> Sequence[Question] | QuestionStream:
        """Read and validate the questions; a stream is validated while it is read.

        Returns:
            Questions with the identity `label:position`.

        Raises:
            InputError: a file is missing, corrupt or not supported, the hub does not answer, a row
                is invalid, or there is no row at all.
        """
        files = self._files()
        if self.streaming:
            return _FileStream(self, files)
        questions: list[Question] = []
        for file in files:
            for _, location, row in file.read_all():
                questions.append(self._question(row, location, len(questions)))
        if not questions:
            raise InputError(f"data source {self.path!r} has no rows; check the file")
        return [questions[index] for index in fixed_selection(len(questions), self.limit)]

    def _files(self) -> list[RowFile]:
        # imported here: the library takes over a second, and embedded questions do not need it
        from zerosearch.data.readers import hub_file, local_files

        files = local_files(self.path)
        return files or [hub_file(self.path, self.name, self.split, streaming=self.streaming)]

    def _question(self, row: Any, location: str, position: int) -> Question:
        return row_to_question(
            row,
            location=location,
            source=self.label,
            uid=f"{self.label}:{position}",
            columns=self.columns,
        )


def fixed_selection(count: int, limit: int | None) -> list[int]:
    """Which questions a limit keeps: the same ones in every run, whatever its seed.

    Args:
        count: number of questions there are.
        limit: number to keep; None or more than `count` keeps all.

    Returns:
        Ascending indices: the first `limit` of one permutation of `range(count)`, so that a larger
        limit only adds to a smaller one.
    """
    if limit is None or limit >= count:
        return list(range(count))
    order = list(range(count))
    derive_random("fixed selection", count).shuffle(order)
    return sorted(order[:limit])


def _is_file(path: str) -> bool:
    return path.endswith(FILE_SUFFIXES) and not glob.has_magic(path)


class _FileStream:
    """Rows of several files in order; its position is file, row and the library's own state."""

    def __init__(self, source: QASource, files: list[RowFile]) -> None:
        self._source = source
        self._files = files
        self._file = 0
        self._row = 0  # rows and blank lines read of the current file
        self._position = 0  # questions read of all files
        self._table: Any = None

    def read(self, state: dict[str, Any] | None) -> Iterator[Question]:
        saved = state or {"file": 0, "row": 0, "position": 0, "table": None}
        self._file, self._row = saved["file"], saved["row"]
        self._position = saved["position"]
        self._table = None
        for number in range(self._file, len(self._files)):
            resumed = number == saved["file"]
            if self._remaining() == 0:
                return
            self._file, self._row = number, saved["row"] if resumed else 0
            self._table = self._files[number].opened(saved["table"] if resumed else None)
            rows = self._files[number].read(self._table, self._row)
            for index, location, row in itertools.islice(rows, self._remaining()):
                self._row, self._position = index + 1, self._position + 1
                yield self._source._question(row, location, self._position - 1)

    def state_dict(self) -> dict[str, Any]:
        table = self._table.state_dict() if self._table is not None else None
        return {"file": self._file, "row": self._row, "position": self._position, "table": table}

    def _remaining(self) -> int | None:
        limit = self._source.limit
        return None if limit is None else max(0, limit - self._position)
