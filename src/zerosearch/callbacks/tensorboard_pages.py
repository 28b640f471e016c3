"""What TensorBoard shows beside curves: headline charts, tables of results, histograms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from zerosearch.callbacks.policy_module import PolicyModule
from zerosearch.callbacks.record_callback import RecordCallback
from zerosearch.callbacks.tensorboard_layout import layout
from zerosearch.callbacks.tensorboard_logger import CurveLogger
from zerosearch.core.distributed import gather_objects
from zerosearch.core.shown import shown_markdown
from zerosearch.training.step_record import StepRecord
from zerosearch.tuning.tuning_module import TuningModule

_SCORES = ("f1", "em", "cover_em", "answered", "loss")
HISTOGRAMS = ("episodes/turns", "episodes/tokens", "episodes/reward")


class TensorBoardPages(RecordCallback):
    """Fills the tabs Custom Scalars, Text and Histograms of runs that have a `CurveLogger`.

    The results before and after training are a table for each engine under `results/`; turns,
    sampled tokens and rewards of the episodes of each policy step are histograms.
    """

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._lay_out(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._lay_out(trainer, pl_module)

    def _lay_out(self, trainer: Trainer, pl_module: Any) -> None:
        """Not before it is known what is taken back: `cut_back` may remove the present file."""
        for logger in _loggers(trainer):
            tuned = isinstance(pl_module, TuningModule)
            logger.add(layout(getattr(pl_module, "evaluations", ()), tuned=tuned))

    def on_record(self, trainer: Trainer, pl_module: PolicyModule, record: StepRecord) -> None:
        if not (loggers := _loggers(trainer)):
            return
        kind, _, engine = record.phase.partition("/")
        if kind == "train":
            values = _episodes(record)
            for name, each in zip(HISTOGRAMS, values.T, strict=True):
                for logger in loggers if len(values) else []:
                    logger.experiment.add_histogram(name, each, record.step)
        elif kind in ("start", "test"):
            before = pl_module.start_metrics if kind == "test" else {}
            text = results_table(engine, before | record.metrics)
            for logger in loggers:
                logger.experiment.add_text(f"results/{engine or 'examples'}", text, record.step)


def _loggers(trainer: Trainer) -> list[CurveLogger]:
    return [each for each in trainer.loggers if isinstance(each, CurveLogger)]


def _episodes(record: StepRecord) -> np.ndarray:
    """Values of `HISTOGRAMS` [B, 3] over all ranks; a collective."""
    own = [
        (len(each.turns), sum(each.sampled), score.total)
        for each, score in zip(record.trajectories, record.scores, strict=True)
        if score is not None
    ]
    every = [row for rank in gather_objects(own) for row in rank]
    return np.array(every, dtype=float).reshape(-1, len(HISTOGRAMS))


def results_table(engine: str, metrics: Mapping[str, float]) -> str:
    """Metrics of held-out data before and after training, with 95% intervals, in Markdown.

    What is zero in both is left out, but for scores.

    Args:
        engine: that answered, or nothing in a tuning.
        metrics: of the phases `start` and `test`, under their paths.
    """
    places = [f"{phase}/{engine}/" if engine else f"{phase}/" for phase in ("start", "test")]
    phases = [
        {name.removeprefix(place): metrics[name] for name in metrics if name.startswith(place)}
        for place in places
    ]
    names = dict.fromkeys(name for of in phases for name in of)
    rows = [
        [shown_markdown(name), *(_cell(name, of) for of in phases)]
        for name in names
        if not _is_bound(name, names) and (name in _SCORES or any(of.get(name) for of in phases))
    ]
    head = [shown_markdown(engine or "validation examples"), "before training", "after training"]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _is_bound(name: str, names: Iterable[str]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in names for end in ("_low", "_high"))


def _cell(name: str, of: Mapping[str, float]) -> str:
    if name not in of:
        return ""
    bounds = [of[f"{name}{end}"] for end in ("_low", "_high") if f"{name}{end}" in of]
    interval = f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if len(bounds) == 2 else ""
    return f"{of[name]:.4g}{interval}"
