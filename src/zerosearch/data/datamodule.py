"""`QADataModule`: the questions of a run, for Lightning.

Training is endless and has no epochs that matter: the unit is the policy step. The checkpoint holds
the number of steps trained, from which the order follows (see `mixing`); evaluation sets are read
in a fixed order and nothing is dropped.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, Seed
from zerosearch.data.loaders import EvalLoader, TrainLoader, digest_of
from zerosearch.data.mixing import Draws, ShuffledQuestions, ShuffledStream, SourceMix
from zerosearch.data.source_lists import (
    Sources,
    check_unique,
    checked_sources,
    file_sources,
    told_apart,
    weights_of,
)
from zerosearch.data.sources import QuestionSource, fixed_selection
from zerosearch.types import Question

log = logging.getLogger(__name__)


class QADataModule(LightningDataModule):
    """Questions for training, validation and test from any number of sources.

    Args:
        questions_per_step: questions of one policy step over all ranks; a multiple of the ranks.
        train: sources mixed by their weights, as a list or as name -> source (the names only
            serve overrides such as `data.train.nq.weight=2`; order and identity come from
            `label`).
        validation: sources asked one after the other.
        test: the same for the test set.
        files: your own training files (see `QASource`); they replace `train` and are mixed by size.
        validation_batch: questions per validation or test batch over all ranks.
        validation_limit: questions used of each validation source (see `fixed_selection`);
            None: all.
        test_limit: the same for each test source.
        seed: seed of the training order; evaluation does not depend on it.
        shuffle_block: questions per shuffled block of a streaming source.

    Further numbers are those of the module that trains on the batches, where it has them: `lag`,
    the steps that sampling is ahead of training (with 1 each batch also holds the questions of the
    next step, `QuestionBatch.following`), and `spare_rounds`, the spare questions of each step in
    units of `questions_per_step` (`QuestionBatch.spares`).

    Raises:
        InputError: no training source, two sources of one label, a weight that is not positive, a
            number that is out of its range.
    """

    def __init__(
        self,
        *,
        questions_per_step: Count,
        train: Sources = (),
        validation: Sources = (),
        test: Sources = (),
        files: Sequence[str] | None = None,
        validation_batch: Count = 64,
        validation_limit: Count | None = None,
        test_limit: Count | None = None,
        seed: Seed = 0,
        shuffle_block: Count = 1024,
    ) -> None:
        super().__init__()
        chosen = train if files is None else file_sources(files)
        # sorted, so that the order of overrides on a command line does not change the mix
        self._train = sorted(checked_sources(chosen, "train"), key=lambda source: source.label)
        self._validation = told_apart(checked_sources(validation, "validation"), self._train)
        self._test = told_apart(checked_sources(test, "test"), self._train + self._validation)
        for name, limit in (("validation_limit", validation_limit), ("test_limit", test_limit)):
            if limit is not None and limit < 1:
                raise InputError(f"{name}={limit} must be at least 1, or null for all questions")
        if shuffle_block < 1:
            raise InputError(f"shuffle_block={shuffle_block} must be at least 1 (1: no shuffling)")
        # the files take the place of sources that the held-out questions belong to
        self._held_out_is_foreign = files is not None and bool(train)
        self._questions_per_step = questions_per_step
        self._validation_batch = validation_batch
        self._limits = {"validation": validation_limit, "test": test_limit}
        self._seed = seed
        self._shuffle_block = shuffle_block
        self._evaluation: dict[str, list[Question]] = {}
        self._loaded: dict[str, Any] | None = None
        self._digests: dict[str, str] = {}  # of the sources that are held in memory
        self._train_loader: TrainLoader | None = None
        self._resume: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._train_loader, self._resume = None, None
            self._loaded = self._loaded or self._load_train()
        if stage in ("fit", "validate"):
            self._load_evaluation("validation", self._validation)
        if stage == "test":
            self._load_evaluation("test", self._test)

    def training_questions(self, streamed: int) -> list[Question]:
        """Training questions of all sources, without moving the position in them.

        Args:
            streamed: so many, the first ones, of a source that is not held in memory.
        """
        assert self._loaded is not None, "setup('fit') comes before training_questions()"
        questions: list[Question] = []
        for source in self._train:
            loaded = self._loaded[source.label]
            if not isinstance(loaded, Sequence):
                stream = source.load()  # anew: the position of the one in use is the training's
                assert not isinstance(stream, Sequence)
                loaded = itertools.islice(stream.read(None), streamed)
            questions.extend(loaded)
        return questions

    def held_out_questions(self) -> list[Question]:
        """Questions of the validations, or of the test where there are none."""
        return self._evaluation.get("validation") or self._evaluation.get("test") or []

    def train_dataloader(self) -> TrainLoader:
        # one loader per fit: if Lightning asks again, the position must not start over
        if self._train_loader is None:
            assert self._loaded is not None, "setup('fit') comes before train_dataloader()"
            weights = weights_of(self._train, self._loaded)
            rank, world_size = self._rank()
            self._train_loader = TrainLoader(
                {label: self._draws(label, questions) for label, questions in self._loaded.items()},
                SourceMix(weights, self._seed),
                questions_per_step=self._questions_per_step,
                rank=rank,
                world_size=world_size,
                steps_done=self._steps_done if self.trainer is not None else None,
                look_ahead=self._of_module("lag") > 0,
                spare_rounds=self._of_module("spare_rounds"),
            )
            if self._resume is not None:
                self._check_same_data(self._resume["data"])
                self._train_loader.load_state_dict(self._resume["loader"])
        return self._train_loader

    def val_dataloader(self) -> EvalLoader:
        return self._eval_loader("validation")

    def test_dataloader(self) -> EvalLoader:
        return self._eval_loader("test")

    def state_dict(self) -> dict[str, Any]:
        if self._train_loader is None:
            return self._resume or {}
        return {"data": self._fingerprint(), "loader": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # compared with the data only when training starts: a checkpoint may be evaluated on any
        self._resume = state_dict

    def _load_train(self) -> dict[str, Any]:
        if not self._train:
            raise InputError(
                "data.train names no source of questions; add one, or give data.files=[my.parquet]"
            )
        self._warn_of_held_out()
        loaded = {source.label: source.load() for source in self._train}
        in_memory = {k: v for k, v in loaded.items() if isinstance(v, Sequence)}
        check_unique([question for questions in in_memory.values() for question in questions])
        self._digests = {
            label: digest_of((each.uid, each.text, each.golden_answers) for each in questions)
            for label, questions in in_memory.items()
        }
        for label in loaded:
            size = len(in_memory[label]) if label in in_memory else "streamed"
            log.info("training questions of %s: %s", label, size)
        return loaded

    def _warn_of_held_out(self) -> None:
        held_out = sorted({source.label for source in (*self._validation, *self._test)})
        if self._held_out_is_foreign and held_out and rank_zero_only.rank == 0:
            log.warning(
                "Training asks questions of %s, but validation and test ask those of %s, about "
                "which the former teach nothing. Held-out questions of your own: data=files "
                "data.files=[...] data.validation.own.path=HELD_OUT evaluation=same_engine",
                ", ".join(source.label for source in self._train),
                ", ".join(held_out),
            )

    def _draws(self, label: str, questions: Any) -> Draws:
        if isinstance(questions, Sequence):
            return ShuffledQuestions(questions, label, self._seed)
        return ShuffledStream(questions, label, self._seed, self._shuffle_block)

    def _load_evaluation(self, name: str, sources: Sequence[QuestionSource]) -> None:
        if name in self._evaluation:
            return
        questions: list[Question] = []
        for source in sources:
            loaded = source.load()
            every = loaded if isinstance(loaded, Sequence) else list(loaded.read(None))
            kept = fixed_selection(len(every), self._limits[name])
            questions.extend(every[index] for index in kept)
            log.info("%s questions of %s: %d of %d", name, source.label, len(kept), len(every))
        check_unique(questions)
        self._evaluation[name] = questions

    def _eval_loader(self, name: str) -> EvalLoader:
        rank, world_size = self._rank()
        return EvalLoader(
            self._evaluation[name],
            batch_size=self._validation_batch,
            rank=rank,
            world_size=world_size,
        )

    def _of_module(self, name: str) -> int:
        """A number that the module in training has; 0 where it has none."""
        return 0 if self.trainer is None else getattr(self.trainer.lightning_module, name, 0)

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _steps_done(self) -> int:
        assert self.trainer is not None
        # counts a batch once its training step has returned, before any callback can save
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.state_dict()["processed"]

    def _fingerprint(self) -> dict[str, Any]:
        """What the order of questions depends on, besides the position."""
        assert self._loaded is not None
        sizes = {k: len(v) if isinstance(v, Sequence) else None for k, v in self._loaded.items()}
        weights = weights_of(self._train, self._loaded)
        return {
            "seed": self._seed,
            "questions_per_step": self._questions_per_step,
            "spare_rounds": self._of_module("spare_rounds"),
            "sources": sizes,
            "digests": self._digests,
            "weights": dict(zip(sizes, weights, strict=True)),
            "shuffle_block": self._shuffle_block if None in sizes.values() else None,
        }

    def _check_same_data(self, saved: dict[str, Any]) -> None:
        current = self._fingerprint()
        before = {"spare_rounds": 0, "digests": self._digests}  # of checkpoints without them
        saved = {**before, **saved}
        changed = [key for key in current if current[key] != saved.get(key)]
        if changed:
            difference = "; ".join(f"{k} was {saved.get(k)}, is {current[k]}" for k in changed)
            raise InputError(
                f"the training data differs from the checkpoint's, so its position means nothing: "
                f"{difference}. Resume with the same data settings, or start a new run from the "
                f"exported policy"
            )
