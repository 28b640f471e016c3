"""The embedded geography questions as a source for `QADataModule`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, Positive
from zerosearch.data.geography.facts import asset
from zerosearch.data.sources import QASource, fixed_selection
from zerosearch.types import Question

SPLITS = ("train", "validation", "test")


@dataclass(kw_only=True, slots=True, frozen=True)
class GeographySource:
    """Questions about places, one and two hops; splits share no subject.

    Args:
        split: train | validation | test.
        hops: keep only questions of this many hops; None: both.
        limit: use this many questions, a fixed selection; None: all.
        weight: share of the training questions relative to other sources; None: by size.
        label: identity among mixed sources.
    """

    split: str = "train"
    hops: Count | None = None
    limit: Count | None = None
    weight: Positive | None = 1.0
    label: str = "geography"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(f"split={self.split!r} of geography: give one of {', '.join(SPLITS)}")
        if self.hops not in (None, 1, 2):
            raise InputError(f"hops={self.hops} of geography: give 1, 2 or null for both")

    def load(self) -> Sequence[Question]:
        """Read the shipped parquet file, a ZeroSearch / Search-R1 table like any other."""
        source = QASource(path=str(asset(f"{self.split}.parquet")), label=f"geography-{self.split}")
        questions = source.load()
        assert isinstance(questions, Sequence)
        chosen = [q for q in questions if self.hops in (None, q.metadata["hops"])]
        return [chosen[index] for index in fixed_selection(len(chosen), self.limit)]
