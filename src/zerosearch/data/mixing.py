"""Order of the training questions: which source a slot draws from, and which question it gets.

Slots are counted over the whole run and over all ranks: step s of Q questions, spares included, has
the slots s * Q to s * Q + Q - 1. For sources in memory the question of a slot is a pure function of
(seed, slot), so a run resumes at any step without replaying the ones before it, and any number of
ranks sees the same steps. Streams can only be read forwards; they carry a position instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from zerosearch.core.errors import InputError
from zerosearch.core.seeding import derive_random
from zerosearch.data.sources import QuestionStream
from zerosearch.types import Question

MIX_RESOLUTION = 1000  # weights are honoured to one part in a thousand


class Draws(Protocol):
    """Endless questions of one source."""

    def draw(self, number: int) -> Question:
        """The question of the source's draw `number` (from 0)."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class SourceMix:
    """Which source each slot draws from, in exact proportion to the weights.

    Slots come in cycles that hold each source in proportion to its weight, shuffled by
    (seed, cycle): equal weights give each source the same number of questions in every cycle of
    as many slots as there are sources.

    Args:
        weights: positive weight per source; at most 1000 sources.
        seed: seed of the run's data order.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self._counts = cycle_counts(weights)
        self._length = sum(self._counts)
        self._seed = seed
        self._cycle = -1
        self._slots: list[tuple[int, int]] = []

    def source(self, slot: int) -> tuple[int, int]:
        """Source of a slot, and how many earlier slots drew from that source."""
        cycle, offset = divmod(slot, self._length)
        if cycle != self._cycle:
            self._cycle, self._slots = cycle, self._shuffled(cycle)
        source, rank = self._slots[offset]
        return source, cycle * self._counts[source] + rank

    def _shuffled(self, cycle: int) -> list[tuple[int, int]]:
        order = [source for source, count in enumerate(self._counts) for _ in range(count)]
        derive_random(self._seed, "source mix", cycle).shuffle(order)
        drawn = [0] * len(self._counts)
        slots = []
        for source in order:
            slots.append((source, drawn[source]))
            drawn[source] += 1
        return slots


def cycle_counts(weights: Sequence[float]) -> list[int]:
    """Slots per source in one cycle: the weights as the smallest whole numbers.

    Rounded to a cycle of `MIX_RESOLUTION` slots by largest remainder, at least one slot per
    source, and divided by the common divisor.
    """
    total = math.fsum(weights)
    exact = [weight / total * MIX_RESOLUTION for weight in weights]
    counts = [max(1, math.floor(share)) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: max(0, MIX_RESOLUTION - sum(counts))]:
        counts[i] += 1
    divisor = math.gcd(*counts)
    return [count // divisor for count in counts]


class ShuffledQuestions:
    """Questions in memory, epoch after epoch, each epoch in its own order.

    Args:
        questions: at least one.
        label: label of the source; part of the seed, so that sources shuffle independently.
        seed: seed of the run's data order.
    """

    def __init__(self, questions: Sequence[Question], label: str, seed: int) -> None:
        self._questions = questions
        self._label = label
        self._seed = seed
        self._orders: dict[int, list[int]] = {}

    def draw(self, number: int) -> Question:
        epoch, position = divmod(number, len(self._questions))
        return self._questions[self._order(epoch)[position]]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert not state_dict, "the order of questions in memory has no state"

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            order = list(range(len(self._questions)))
            derive_random(self._seed, "epoch", self._label, epoch).shuffle(order)
            previous = self._orders.get(epoch - 1)  # one batch may straddle two epochs
            self._orders = {epoch: order} | ({epoch - 1: previous} if previous else {})
        return self._orders[epoch]


class ShuffledStream:
    """A stream, pass after pass, shuffled within blocks.

    Blocks, not a sliding buffer: the position is then the start of the block plus an offset, and
    resuming reads one block again instead of having to save the buffer's content.

    Args:
        stream: where the questions are read from.
        label: label of the source; part of the seed and of errors.
        seed: seed of the run's data order.
        block: questions per block; 1 keeps the order of the stream.
    """

    def __init__(self, stream: QuestionStream, label: str, seed: int, block: int) -> None:
        self._stream = stream
        self._label = label
        self._seed = seed
        self._size = block
        self.load_state_dict({"epoch": 0, "block": 0, "offset": 0, "start": None})

    def draw(self, number: int) -> Question:
        del number  # a stream only moves forwards
        questions = self._questions or self._read_block()
        if self._offset == len(questions):
            self._block, self._offset, self._start = self._block + 1, 0, self._stream.state_dict()
            questions = self._read_block()
        self._offset += 1
        return questions[self._offset - 1]

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "block": self._block,
            "offset": self._offset,
            "start": self._start,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._epoch: int = state_dict["epoch"]
        self._block: int = state_dict["block"]
        self._offset: int = state_dict["offset"]
        self._start: dict[str, Any] | None = state_dict["start"]
        self._questions: list[Question] | None = None
        self._reader: Iterator[Question] | None = None

    def _read_block(self) -> list[Question]:
        if self._reader is None:
            self._reader = self._stream.read(self._start)
        questions = self._take(self._reader)
        if not questions:
            self._epoch, self._block, self._start = self._epoch + 1, 0, None
            self._reader = self._stream.read(None)
            questions = self._take(self._reader)
        if not questions:
            raise InputError(f"data source {self._label!r} has no rows; check its files")
        derive_random(self._seed, "block", self._label, self._epoch, self._block).shuffle(questions)
        self._questions = questions
        return questions

    def _take(self, reader: Iterator[Question]) -> list[Question]:
        return [question for _, question in zip(range(self._size), reader, strict=False)]
