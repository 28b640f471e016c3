"""The test sets of the table: who they are, where they come from, which questions are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count
from zerosearch.data.published_rows import common_row
from zerosearch.data.rows import row_to_question
from zerosearch.data.sources import fixed_selection
from zerosearch.evaluation.official import Scorer
from zerosearch.types import Question


class QuestionSet(Protocol):
    """Where a benchmark's questions come from."""

    def load(self) -> Sequence[Question]: ...


@dataclass(kw_only=True, slots=True, frozen=True)
class Benchmark:
    """One test set of the table.

    Args:
        label: heading of its column.
        source: its questions.
        scorer: its official one, whose figures stand beside ours; None: it has none.

    Raises:
        InputError: there is no such scorer.
    """

    label: str
    source: QuestionSet
    scorer: Scorer | None = None

    def __post_init__(self) -> None:
        if self.scorer is not None and self.scorer not in get_args(Scorer):
            raise InputError(
                f"scorer={self.scorer!r} of {self.label}: give one of {get_args(Scorer)}, or null"
            )


@dataclass(kw_only=True, slots=True, frozen=True)
class PublishedSet:
    """Questions in a form that their authors published, see `common_row`.

    Args:
        path: file, pattern of files, or name of a hub data set.
        name: configuration of a hub data set.
        split: of a hub data set; files are read whole.
        only: keep rows with this `data_source`, of a file that holds several sets.
        limit: ask so many, a fixed choice (`fixed_selection`): the same ones for everybody. None:
            all.
        label: what questions' identities begin with.
    """

    path: str
    label: str
    name: str | None = None
    split: str = "test"
    only: str | None = None
    limit: Count | None = 500

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit={self.limit} of {self.label}: give 1 or more, or null for all")

    def load(self) -> list[Question]:
        """Read, check and choose the questions.

        Returns:
            Questions with the identity `label:position`, position among those kept of the file.

        Raises:
            InputError: the file is missing, damaged or of another form, a row lacks a question or
                an answer, an id comes twice, or no row is left.
        """
        # imported here: the library takes over a second, and embedded questions do not need it
        from zerosearch.data.readers import hub_file, local_files

        files = local_files(self.path)
        questions: list[Question] = []
        places: dict[str, str] = {}
        for file in files or [hub_file(self.path, self.name, self.split, streaming=False)]:
            for _, location, row in file.read_all():
                if self.only is not None and row.get("data_source") != self.only:
                    continue
                common = common_row(row, location)
                if common is None:
                    continue
                self._check_id(common["id"], location, places)
                uid = f"{self.label}:{len(questions)}"
                questions.append(
                    row_to_question(common, location=location, source=self.label, uid=uid)
                )
        if not questions:
            which = "" if self.only is None else f" with data_source={self.only!r}"
            raise InputError(f"benchmark file {self.path!r} has no rows{which}; check the file")
        return [questions[index] for index in fixed_selection(len(questions), self.limit)]

    @staticmethod
    def _check_id(identity: str | None, location: str, places: dict[str, str]) -> None:
        if identity is None:
            return
        if identity in places:
            raise InputError(
                f"{location}: the id {identity!r} stands at {places[identity]} too; take one of "
                "the rows out"
            )
        places[identity] = location


def check_apart(questions: Mapping[str, Sequence[Question]]) -> None:
    """Refuse benchmarks whose questions have the same identities, by which noise is drawn.

    Args:
        questions: by the benchmark's name; of one set under two names they may be the same.

    Raises:
        InputError: names the two, and the remedy.
    """
    seen: dict[str, tuple[str, str]] = {}
    for name, asked in questions.items():
        for question in asked:
            other, text = seen.setdefault(question.uid, (name, question.text))
            if text != question.text:
                raise InputError(
                    f"the benchmarks {other} and {name} both have a question {question.uid!r}: "
                    f"give one another label (benchmark.{name}.source.label, or of a file "
                    f"benchmark.{name}.label)"
                )


def file_benchmark(path: str, *, label: str = "file", limit: int | None = 500) -> Benchmark:
    """Any file of questions as a benchmark.

    Args:
        path: file, or pattern of files, in any form that `PublishedSet` reads.
        label: heading of its column, and what its questions' identities begin with.
        limit: as of `PublishedSet`.
    """
    return Benchmark(label=label, source=PublishedSet(path=path, label=label, limit=limit))
