"""Batches of questions for Lightning: endless and resumable for training, exact for evaluation.

Both cut the same global batches for any number of ranks; a rank takes its contiguous share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, overload

from zerosearch.core.errors import InputError
from zerosearch.data.mixing import Draws, SourceMix
from zerosearch.types import Question

KEPT_STATES = 3  # the step in progress, the one Lightning fetches ahead, one to spare


class QuestionBatch:
    """A read-only list of questions that Lightning passes on untouched.

    Deliberately not a `Sequence`: Lightning walks into sequences and data classes to move and cast
    tensors, and refuses frozen data classes such as `Question` on the way.

    Args:
        questions: of this rank in one step.
        spares: to ask in place of those that turn out to teach nothing.
        following: the batch of the next step, where the loader looks ahead.
    """

    __slots__ = ("_questions", "following", "spares")

    def __init__(
        self,
        questions: Sequence[Question],
        spares: Sequence[Question] = (),
        following: QuestionBatch | None = None,
    ) -> None:
        self._questions = tuple(questions)
        self.spares = tuple(spares)
        self.following = following

    def __len__(self) -> int:
        return len(self._questions)

    def __iter__(self) -> Iterator[Question]:
        return iter(self._questions)

    @overload
    def __getitem__(self, index: int) -> Question: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Question, ...]: ...

    def __getitem__(self, index: int | slice) -> Question | tuple[Question, ...]:
        return self._questions[index]

    def __repr__(self) -> str:
        return f"QuestionBatch({[question.uid for question in self._questions]})"


def digest_of(values: Iterable[object]) -> str:
    """16 hexadecimal digits of what the values say of themselves, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        digest.update(repr(value).encode(errors="replace"))
    return digest.hexdigest()


def rank_slice(count: int, rank: int, world_size: int) -> slice:
    """Contiguous share of `count` items: shares differ by at most one and cover everything."""
    return slice(rank * count // world_size, (rank + 1) * count // world_size)


def check_shared(questions_per_step: int, world_size: int) -> None:
    """Raise where the questions of a step cannot be shared evenly by the processes.

    Raises:
        InputError: names the numbers that would do.
    """
    if questions_per_step < 1 or questions_per_step % world_size:
        lower = questions_per_step // world_size * world_size
        wanted = f"{lower} or {lower + world_size}" if lower > 0 else f"{world_size}"
        raise InputError(
            f"questions_per_step={questions_per_step} is not a positive multiple of the "
            f"{world_size} processes (devices x nodes) that share each step: use {wanted}"
        )


class TrainLoader:
    """Endless training batches, one per policy step, with an exact position.

    The position is the number of steps that were *trained*, not that were handed out: Lightning
    fetches one batch ahead when a loader has no length, and a step that was interrupted in the
    middle must be repeated. `steps_done` supplies that number.

    Args:
        draws: label -> endless questions, in the order of the mix's weights.
        mix: which source each slot draws from.
        questions_per_step: questions of one step over all ranks.
        rank: this process.
        world_size: number of processes; must divide `questions_per_step`.
        steps_done: steps trained so far, from any starting point; None counts batches handed out.
        look_ahead: hand out the questions of the next step beside those of each step.
        spare_rounds: spare questions of a step, in units of `questions_per_step`. They are drawn
            after the questions of the step, and passed over if nobody asks them.

    Raises:
        InputError: `questions_per_step` is not a positive multiple of `world_size`.
    """

    def __init__(
        self,
        draws: Mapping[str, Draws],
        mix: SourceMix,
        *,
        questions_per_step: int,
        rank: int = 0,
        world_size: int = 1,
        steps_done: Callable[[], int] | None = None,
        look_ahead: bool = False,
        spare_rounds: int = 0,
    ) -> None:
        check_shared(questions_per_step, world_size)
        self._draws = dict(draws)
        self._sources = list(self._draws.values())
        self._mix = mix
        self._questions_per_step = questions_per_step
        self._share = rank_slice(questions_per_step, rank, world_size)
        self._draws_per_step = questions_per_step * (1 + spare_rounds)
        self._spare_share = rank_slice(questions_per_step * spare_rounds, rank, world_size)
        self._steps_done = steps_done or self._count_handed_out
        self._look_ahead = look_ahead
        self._handed_out = 0
        self._states: dict[int, dict[str, Any]] = {}
        self.load_state_dict({"step": 0, "sources": {}})

    @property
    def step(self) -> int:
        """Steps trained since the start of the run: the step that is trained next."""
        return self._first_step + self._steps_done() - self._done_at_first

    def __iter__(self) -> Iterator[QuestionBatch]:
        steps = self._draw_from(self.step)
        batches = pairwise(steps) if self._look_ahead else ((step, None) for step in steps)
        for batch, following in batches:
            self._handed_out += 1
            yield QuestionBatch(batch[:], batch.spares, following)

    def state_dict(self) -> dict[str, Any]:
        """Position of the next step to train; the same on every rank."""
        step = self.step
        # a step without a saved state was not handed out yet: the sources stand right before it
        sources = self._states[step] if step in self._states else self._source_states()
        return {"step": step, "sources": sources}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first_step: int = state_dict["step"]
        self._done_at_first = self._steps_done()
        self._states = {}
        self._load_sources(state_dict["sources"])

    def _count_handed_out(self) -> int:
        return self._handed_out

    def _draw_from(self, step: int) -> Iterator[QuestionBatch]:
        """This rank's questions of a step and of those after it."""
        if step in self._states:
            self._load_sources(self._states[step])
        while True:
            self._states[step] = self._source_states()
            self._states.pop(step - KEPT_STATES - self._look_ahead, None)
            drawn = self._draw_step(step)
            questions = drawn[: self._questions_per_step]
            spares = drawn[self._questions_per_step :]
            yield QuestionBatch(questions[self._share], spares[self._spare_share])
            step += 1

    def _draw_step(self, step: int) -> list[Question]:
        """The questions and the spares of all ranks."""
        first = step * self._draws_per_step
        drawn = []
        for slot in range(first, first + self._draws_per_step):
            source, number = self._mix.source(slot)
            drawn.append(self._sources[source].draw(number))
        return drawn

    def _source_states(self) -> dict[str, Any]:
        states = {label: draws.state_dict() for label, draws in self._draws.items()}
        return {label: state for label, state in states.items() if state}

    def _load_sources(self, states: Mapping[str, Any]) -> None:
        for label, state in states.items():
            self._draws[label].load_state_dict(state)


class EvalLoader:
    """Every question exactly once over all ranks, in a fixed order, the last batch included.

    All ranks get the same number of batches, so that they make the same collective calls; a share
    of the last batch may be empty.

    Args:
        questions: what to evaluate on.
        batch_size: questions per batch over all ranks.
        rank: this process.
        world_size: number of processes.

    Raises:
        InputError: `batch_size` is not positive.
    """

    def __init__(
        self, questions: Sequence[Question], *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise InputError(f"validation_batch={batch_size} must be at least 1")
        self._questions = questions
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size

    @property
    def share(self) -> int:
        """Questions of this rank."""
        return sum(map(len, self))

    def __len__(self) -> int:
        return -(-len(self._questions) // self._batch_size)

    def __iter__(self) -> Iterator[QuestionBatch]:
        for start in range(0, len(self._questions), self._batch_size):
            batch = self._questions[start : start + self._batch_size]
            yield QuestionBatch(batch[rank_slice(len(batch), self._rank, self._world_size)])
