"""Batches of tuning examples; which examples a step gets is a function of seed and step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, Seed, check_least
from zerosearch.core.seeding import derive_random
from zerosearch.data.loaders import digest_of, rank_slice

E = TypeVar("E")  # an example
E_co = TypeVar("E_co", covariant=True)
S_co = TypeVar("S_co", bound="ExampleSet[object]", covariant=True)


class ExampleSet(Protocol[E_co]):
    """What a model is tuned on."""

    @property
    def train(self) -> Sequence[E_co]: ...

    @property
    def validation(self) -> Sequence[E_co]: ...


class ExampleFiles(Protocol[S_co]):
    """Where examples come from."""

    def load(self) -> S_co:
        """Read them; an InputError names file, row and remedy."""
        ...


S = TypeVar("S", bound=ExampleSet[object])


class ExampleBatch(Generic[E]):
    """Examples that Lightning passes on untouched: it walks into sequences (see `QuestionBatch`).

    Args:
        examples: of this rank.
    """

    __slots__ = ("examples",)

    def __init__(self, examples: Sequence[E]) -> None:
        self.examples = tuple(examples)


class TuningLoader(Generic[E]):
    """Endless training batches from wherever training stands; it has no position of its own.

    Args:
        examples: of all ranks.
        per_step: examples of one step over all ranks.
        seed: of the order, which differs in every epoch.
        rank: of this process.
        world_size: number of processes.
        steps_done: of training, asked whenever iteration starts.
    """

    def __init__(
        self,
        examples: Sequence[E],
        per_step: int,
        *,
        seed: int,
        rank: int,
        world_size: int,
        steps_done: Callable[[], int],
    ) -> None:
        self._examples = examples
        self._per_step = per_step
        self._seed = seed
        self._share = rank_slice(per_step, rank, world_size)
        self._steps_done = steps_done
        self._order: tuple[int, list[int]] = (-1, [])

    def __iter__(self) -> Iterator[ExampleBatch[E]]:
        for step in count(self._steps_done()):
            first = step * self._per_step
            slots = range(first, first + self._per_step)[self._share]
            yield ExampleBatch([self._draw(slot) for slot in slots])

    def state_dict(self) -> dict[str, int]:
        """Nothing: Lightning warns of loaders that have no such method."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        assert not state_dict, "the position is that of training"

    def _draw(self, slot: int) -> E:
        epoch, position = divmod(slot, len(self._examples))
        if self._order[0] != epoch:
            order = list(range(len(self._examples)))
            derive_random(self._seed, "tuning", epoch).shuffle(order)
            self._order = (epoch, order)
        return self._examples[self._order[1][position]]


class TuningData(LightningDataModule, Generic[S]):
    """Training and validation examples of what is tuned.

    Args:
        files: where they come from.
        examples_per_step: examples of one optimizer update over all GPUs.
        validation_limit: use this many validation examples; None: all.
        seed: of the order.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(
        self,
        files: ExampleFiles[S],
        *,
        examples_per_step: Count,
        validation_limit: Count | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("examples_per_step", examples_per_step),
            ("validation_limit", 1 if validation_limit is None else validation_limit),
        ):
            check_least("data", name, value, 1)
        self._files = files
        self._per_step = examples_per_step
        self._validation_limit = validation_limit
        self._seed = seed
        self._set: S | None = None
        self._resume: dict[str, Any] | None = None  # what a checkpoint says of its data

    @property
    def examples_per_step(self) -> int:
        """Of one optimizer update over all GPUs."""
        return self._per_step

    @property
    def examples(self) -> S:
        """What was read; the files are read once."""
        if self._set is None:
            self._set = self._files.load()
        return self._set

    @cached_property
    def _digest(self) -> str:
        return digest_of(self.examples.train)

    @property
    def validation(self) -> list[Any]:
        """The validation examples that are used: a fixed choice of all kinds."""
        chosen = list(self.examples.validation)
        derive_random("tuning validation limit", len(chosen)).shuffle(chosen)
        return chosen[: self._validation_limit]

    def state_dict(self) -> dict[str, Any]:
        """What decides which examples a step gets."""
        made_of = {"seed": self._seed, "examples_per_step": self._per_step}
        return {**made_of, "digest": self._digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume = state_dict  # compared when training goes on

    def train_dataloader(self) -> TuningLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        current = self.state_dict()
        saved = self._resume or current
        if changed := [name for name in current if saved.get(name) != current[name]]:
            said = "; ".join(
                f"{each} was {saved.get(each)}, is {current[each]}" for each in changed
            )
            raise InputError(
                f"the examples differ from those of the checkpoint: {said}. Resume with the same "
                "data settings and files, or start a new run from what was exported"
            )
        module = trainer.lightning_module
        return TuningLoader(
            self.examples.train,
            self._per_step,
            seed=self._seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            steps_done=lambda: int(module.policy_step),  # type: ignore[arg-type]
        )

    def val_dataloader(self) -> DataLoader[ExampleBatch[Any]]:
        """One batch: this rank's share of all validation examples."""
        assert self.trainer is not None
        chosen = self.validation
        share = rank_slice(len(chosen), self.trainer.global_rank, self.trainer.world_size)
        return DataLoader([ExampleBatch(chosen[share])], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[ExampleBatch[Any]]:
        return self.val_dataloader()
