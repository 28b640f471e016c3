"""From a composed configuration to the objects of a run, and what they do."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import hydra
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from zerosearch.callbacks.budget_stop import used_up_budget
from zerosearch.callbacks.event_files import cut_back
from zerosearch.callbacks.graceful_stop import stopped_by_signal
from zerosearch.callbacks.tensorboard_columns import columns
from zerosearch.callbacks.tensorboard_logger import CurveLogger
from zerosearch.core.errors import InputError
from zerosearch.core.hyperparameters import hyperparameters
from zerosearch.core.nodes import check_nodes
from zerosearch.core.outcome import columns_of
from zerosearch.core.plain import check_plain
from zerosearch.core.quiet import quiet_libraries
from zerosearch.core.ranges import Count
from zerosearch.core.run_date import set_run_date
from zerosearch.core.runs import Summary, find_checkpoint
from zerosearch.planning.fitting import fit_memory
from zerosearch.policy.checkpoints import read_notes
from zerosearch.training.module import SearchPolicyModule
from zerosearch.training.preflight import check_accelerator
from zerosearch.training.trainer_settings import check_precision
from zerosearch.tuning.datamodule import TuningData
from zerosearch.tuning.tuning_module import TuningModule

COMPONENTS = ("data", "module", "callbacks", "logger", "trainer")  # of a training
_NOTHING_LEFT = (
    "%s has done %d steps, and %d are asked for: nothing was trained; give more steps to go on"
)

log = logging.getLogger(__name__)


M = TypeVar("M", SearchPolicyModule, TuningModule[Any, Any])
D = TypeVar("D", bound=LightningDataModule)


@dataclass(kw_only=True, slots=True)
class Run(Generic[M, D]):
    """The objects of one training run."""

    trainer: Trainer
    module: M
    data: D

    @property
    def stop_signal(self) -> str | None:
        """Name of the signal that ended the run early."""
        if stop := stopped_by_signal(self.trainer):
            return stop.signal_name
        return "SIGTERM" if self.trainer.received_sigterm else None  # outside of training

    @property
    def status(self) -> str:
        """Either "completed" or "interrupted by <signal>"."""
        return f"interrupted by {self.stop_signal}" if self.stop_signal else "completed"

    def start_over(self) -> None:
        """Take back what an attempt without a checkpoint has logged in the same folder."""
        if self.trainer.is_global_zero:
            cut_back(self.trainer.loggers, {})

    def fit(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint where one is given."""
        with suppress(SIGTERMException):
            self.trainer.fit(self.module, self.data, ckpt_path=checkpoint, weights_only=True)
        done, wanted = self.module.policy_step, self.module.policy_steps
        if checkpoint is not None and done > wanted:
            log.warning(_NOTHING_LEFT, checkpoint, done, wanted)

    def evaluate(self, phase: str) -> None:
        """Evaluate on the test data and log the result as `<phase>/...`."""
        self.module.phase = phase
        with suppress(SIGTERMException):
            self.trainer.test(self.module, self.data, verbose=False)
        self.module.phase = "val"

    def fit_and_evaluate(self, checkpoint: Path | None, *, test: bool) -> None:
        """Train to the end, and evaluate before and after it, as long as nothing stops the run.

        Args:
            checkpoint: that it goes on from, and has been evaluated before.
            test: whether it is evaluated.
        """
        if checkpoint is None:
            self.start_over()
        if test and checkpoint is None:
            self.evaluate("start")
            self.check_searches()
        if self.status == "completed":
            self.fit(checkpoint)
        if test and self.status == "completed":
            self.evaluate("test")

    def check_searches(self) -> None:
        """Raise where an evaluation lost its searches; what searches nothing loses none."""

    @property
    def headline_curves(self) -> list[str]:
        """Metrics whose last values stand in TensorBoard's table of runs."""
        return []

    def log_settings(self, cfg: DictConfig) -> None:
        """Hand the configuration to the loggers of others; ours shows columns at the end."""
        for logger in self.trainer.loggers:
            if not isinstance(logger, CurveLogger):
                logger.log_hyperparams(hyperparameters(cfg))

    def show_columns(self, facts: Mapping[str, Any]) -> None:
        """Show settings and status beside results, in TensorBoard's tab HParams.

        Args:
            facts: of the run's summary.
        """
        values, first = columns_of(facts)
        for logger in self.trainer.loggers:
            if isinstance(logger, CurveLogger):
                logger.add(*columns(values, self.headline_curves, first))
                logger.save()

    @contextmanager
    def failing_in_sight(self, facts: Mapping[str, Any]) -> Iterator[None]:
        """Within, an error leaves the run's row in that tab, with what it had come to.

        Args:
            facts: of the run's summary.
        """
        try:
            yield
        except Exception:
            with suppress(OSError):  # a full disk has ended the run: that is what is said
                self.show_columns({**facts, **self.final_metrics(), "status": "failed"})
            raise

    def final_metrics(self) -> dict[str, float]:
        """What the run has come to."""
        return {}


class PolicyRun(Run[SearchPolicyModule, LightningDataModule]):
    """A policy learns to search."""

    @property
    def status(self) -> str:
        """As of any run, or "stopped: ..." where the budget of its simulator is used up."""
        budget = used_up_budget(self.trainer)
        if budget is None or self.stop_signal:
            return super().status
        return f"stopped: {budget.describe(self.module)}"

    @property
    def headline_curves(self) -> list[str]:
        """Metrics whose last values stand in TensorBoard's table of runs."""
        return [f"val/{next(iter(self.module.evaluations))}/f1", "reward/total", "rollout/searches"]

    def fit(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint where one is given."""
        self.module.resumed = checkpoint is not None
        try:
            super().fit(checkpoint)
        finally:
            self.module.rollouts.stop()

    def check_searches(self) -> None:
        """Raise where the last evaluation lost too many answers to failed searches.

        It counts them as wrong, so its numbers say more about the engine than about the policy.

        Raises:
            SearchOutage: names the engine, the share, an endpoint and its reason.
        """
        if self.module.evaluation_outage is not None:
            raise self.module.evaluation_outage

    def final_metrics(self) -> dict[str, float]:
        """Last training metrics, start and test metrics, and the headline as start/f1, test/f1."""
        module = self.module
        metrics = {**module.train_metrics, **module.start_metrics, **module.evaluation_metrics}
        metrics |= module.costs.totals  # the last evaluation included
        headline = next(iter(module.evaluations))
        for phase in ("start", "test"):
            for name in ("f1", "em", "cover_em"):
                if (value := metrics.get(f"{phase}/{headline}/{name}")) is not None:
                    metrics[f"{phase}/{name}"] = value
        return metrics


class TuningRun(Run[TuningModule[Any, Any], TuningData[Any]]):
    """A simulator learns to write documents, or a policy to play episodes."""

    @property
    def headline_curves(self) -> list[str]:
        """Metrics whose last values stand in TensorBoard's table of runs."""
        return [self.module.loss_name, "val/loss"]

    def read_examples(self) -> None:
        """Read the data, before any model is loaded; an example that cannot be used is an error.

        Raises:
            InputError: names file, row or setting and the remedy.
        """
        module, examples = self.module, self.data.examples
        module.policy_source.check()
        module.take(examples)
        log.info(
            "examples: %d for training, %d of %d for validation; %d steps are %.1f epochs",
            len(examples.train),
            len(self.data.validation),
            len(examples.validation),
            module.policy_steps,
            module.policy_steps * self.data.examples_per_step / len(examples.train),
        )

    def final_metrics(self) -> dict[str, float]:
        """Metrics of the last step, and of the validations before and after."""
        module = self.module
        return {**module.train_metrics, **module.start_metrics, **module.validation_metrics}


def prepare(cfg: DictConfig, summary: Summary) -> Path | None:
    """Check what can be checked before anything is loaded, and seed every random generator.

    Args:
        cfg: of a training, whichever model is trained.
        summary: of its run folder.

    Returns:
        The checkpoint that it goes on from, if any.

    Raises:
        InputError: a setting is wrong, does not fit into memory, or there is nothing to go on from.
    """
    check_nodes(cfg, *COMPONENTS)
    check_accelerator(cfg.trainer.accelerator)
    check_precision(cfg.trainer.get("precision"))
    checkpoint = find_checkpoint(cfg.resume, summary.path.parent)
    notes = {}
    if checkpoint is not None:
        with suppress(InputError):  # what is wrong with it is said when all of it is read
            notes = read_notes(checkpoint)
    saved = notes.get("tokens_per_micro_batch")
    check_plain(Count | None, saved, f"{checkpoint}: tokens_per_micro_batch")
    tokens = fit_memory(cfg, saved)
    if cfg.module.tokens_per_micro_batch is None and checkpoint is None:  # which would hold it
        log.info("module.tokens_per_micro_batch: %d, by the memory there is", tokens)
        cfg.module.tokens_per_micro_batch = tokens
    seed_everything(cfg.seed, workers=True, verbose=False)
    set_run_date(notes.get("date"))
    return checkpoint


def assemble(cfg: DictConfig) -> PolicyRun:
    """Instantiate every node of the configuration of a policy's training.

    Raises:
        InputError: a node refuses its settings; the message says which key.
    """
    return PolicyRun(**_objects(cfg))


def assemble_tuning(cfg: DictConfig) -> TuningRun:
    """The same of a tuning."""
    return TuningRun(**_objects(cfg))


def _objects(cfg: DictConfig) -> dict[str, Any]:
    quiet_libraries()
    data = hydra.utils.instantiate(cfg.data)
    module = hydra.utils.instantiate(cfg.module)
    callbacks, loggers = (
        [hydra.utils.instantiate(node) for node in _nodes(cfg, name)]
        for name in ("callbacks", "logger")
    )
    trainer = hydra.utils.instantiate(cfg.trainer, callbacks=callbacks, logger=loggers or False)
    return {"trainer": trainer, "module": module, "data": data}


def _nodes(cfg: DictConfig, name: str) -> Iterator[DictConfig]:
    """What a group holds by name, without what is switched off."""
    for key, node in (cfg.get(name) or {}).items():
        if node and "_target_" not in node:
            raise InputError(
                f"{name}.{key} has no _target_: choose a {key}=, or leave it out with "
                f"{name}.{key}=null"
            )
        if node:
            yield node
