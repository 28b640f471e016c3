"""Supervised tuning as a LightningModule, whatever is tuned.

Loss is on what is learned alone, a mean over these tokens of all ranks and micro-batches, so that
the gradient does not depend on how examples are split. Models, sharding, packing and chunked
log-probs are those of the policy's training.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zerosearch.core.errors import InputError, NonFiniteError
from zerosearch.core.ranges import check_least
from zerosearch.generation.generator import Generator
from zerosearch.policy.source import PolicySource
from zerosearch.training.base_module import TrainedModule
from zerosearch.training.metrics import Means, peak_memory_gib, reset_peak_memory
from zerosearch.training.optimization import optimized
from zerosearch.training.sharded_strategy import sharding_of
from zerosearch.training.trainee import Trainee
from zerosearch.tuning.datamodule import ExampleBatch, ExampleSet
from zerosearch.tuning.encoded_examples import EncodedExample, collate
from zerosearch.tuning.update import SupervisedUpdater

E = TypeVar("E")  # an example
S = TypeVar("S", bound=ExampleSet[Any])  # all of them


class TuningModule(TrainedModule, Generic[E, S]):
    """Tunes a model on examples.

    Args:
        policy: the model that is tuned.
        generator: writes in validations.
        optimizer: from parameters, e.g. a partial of AdamW.
        schedule: from optimizer and number of updates, e.g. a partial of `warmup_schedule`.
        steps: optimizer updates of the whole run.
        seed: of what is generated.
        trained: further arguments of `TrainedModule`.

    Raises:
        InputError: a number is out of range.
    """

    loss_name: ClassVar[str]  # of the metric of a step
    kind: ClassVar[str]  # of what is tuned; stands in its checkpoints

    def __init__(
        self,
        *,
        policy: PolicySource,
        generator: Generator,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[[Optimizer, int], LRScheduler],
        steps: int,
        seed: int,
        **trained: Any,
    ) -> None:
        # a policy step is one optimizer update
        super().__init__(policy=policy, policy_steps=steps, **trained)
        check_least("module", "steps", steps, 1)
        self.generator = generator
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.seed = seed
        self.validation_metrics: dict[str, float] = {}  # of the last validation

    # -- what is tuned -----------------------------------------------------------------------

    @abstractmethod
    def take(self, examples: S) -> None:
        """Check all examples, before the model is loaded.

        Raises:
            InputError: one cannot be used as it is; names it, or a setting, and the remedy.
        """

    @abstractmethod
    def encode(self, examples: Sequence[E]) -> list[EncodedExample]:
        """Token ids of examples, and which of them are learned."""

    def part_of(self, example: E) -> str | None:
        """Under which name the loss of an example is shown apart, too."""
        return None

    @abstractmethod
    def measure(self, examples: Sequence[E]) -> dict[str, float]:
        """What a validation measures beside the loss; a collective.

        Args:
            examples: this rank's share of the held-out ones.
        """

    # -- set-up ------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load model and tokenizer."""
        if self.model is None:
            self.load_trained(sharding_of(self))

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of what is trained."""
        factories = (self.optimizer_factory, self.schedule_factory)
        made = optimized(self.loaded_model(), *factories, self.policy_steps)
        self.keep_configured([made])
        return made

    def on_train_start(self) -> None:
        """After a checkpoint was loaded, if there is one."""
        self.choose_attention()
        self.use_configured()

    # -- training ----------------------------------------------------------------------------

    def training_step(self, batch: ExampleBatch[E], batch_index: int) -> None:
        """One optimizer update on this rank's examples."""
        started = time.perf_counter()
        reset_peak_memory(self.device)
        encoded = self.encode(batch.examples)
        trainee = Trainee(
            model=self.loaded_model().train(),
            updater=self._updater(),
            optimizer=self.optimizers(),
            schedule=self.lr_schedulers(),  # type: ignore[arg-type]
            gradient_clip=self.gradient_clip,
            skipped=self.skipped["policy"],
            remedy="optimizer.lr or module.gradient_clip",
        )
        try:
            found = trainee.update(collate(encoded, pad_id=self._pad_id), self.manual_backward)
        except NonFiniteError:
            skipped = {"optimizer/skipped": float(self.skipped["policy"].total)}
            self.latest = self.record(skipped, phase="train")
            raise
        seconds = time.perf_counter() - started
        tokens = Means()
        tokens.add("tokens", sum(map(len, encoded)) * self.trainer.world_size)
        metrics = {
            "optimizer/skipped": float(self.skipped["policy"].total),
            "time/train_s": seconds,
            "throughput/tokens_per_s": tokens.reduced()["tokens"] / seconds,
            "memory/peak_gib": peak_memory_gib(self.device),
        }
        if found is not None:
            metrics[self.loss_name] = found["loss"]
            metrics["optimizer/gradient_norm"] = found["gradient_norm"]
            metrics["optimizer/learning_rate"] = found["learning_rate"]
        self.train_metrics = metrics
        self.latest = self.record(metrics, phase="train")
        self.policy_step += 1

    def _updater(self) -> SupervisedUpdater:
        return SupervisedUpdater(
            micro_batches=self.micro_batches(), chunk_tokens=self.logprob_chunk_tokens
        )

    @property
    def _pad_id(self) -> int:
        assert self.tokenizer is not None and isinstance(self.tokenizer.pad_token_id, int)
        return self.tokenizer.pad_token_id

    # -- validation --------------------------------------------------------------------------

    def validation_step(self, batch: ExampleBatch[E], batch_index: int) -> None:
        """Loss on held-out examples, and what else is measured on them."""
        metrics = self._losses(batch.examples) | self.measure(batch.examples)
        named = {f"{self.phase}/{name}": value for name, value in metrics.items()}
        self.validation_metrics = named
        if self.phase == "start":
            self.start_metrics = named
        self.evaluation_records = [self.record(named, phase=self.phase)]
        loss = metrics["loss"]
        self.log("loss", loss, logger=False, batch_size=1, sync_dist=True)

    def test_step(self, batch: ExampleBatch[E], batch_index: int) -> None:
        """As `validation_step`."""
        self.validation_step(batch, batch_index)

    def _losses(self, examples: Sequence[E]) -> dict[str, float]:
        """Over all ranks: nats per learned token, of each part too, and the share foretold."""
        batch = collate(self.encode(examples), pad_id=self._pad_id)
        logprobs, top = self._updater().score(self.loaded_model().eval(), batch)
        means = Means()
        for row, example in enumerate(examples):
            loss, tokens = -logprobs[row].sum().item(), int(batch.sampled_mask[row].sum())
            means.add("loss", loss, tokens)
            means.add("token_accuracy", top[row].sum().item(), tokens)
            if (part := self.part_of(example)) is not None:
                means.add(f"loss_{part}", loss, tokens)
        found = means.reduced()
        return {**found, "perplexity": math.exp(min(found["loss"], 700.0))}

    # -- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["zerosearch"] = {
            **self.progress(),
            "tuned": self.kind,
            "validation_metrics": self.validation_metrics,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("zerosearch", {})
        if saved.get("tuned") != self.kind:
            raise InputError(
                f"resume: the checkpoint was not written by the tuning of a {self.kind}"
            )
        self.restore_progress(checkpoint, saved)
        self.validation_metrics = saved.get("validation_metrics", {})
