"""What a run writes for TensorBoard's charts and its table of hyper-parameters.

`metrics.csv` keeps every number. Here stand those that make a curve: results before and after
training are a table (`tensorboard_pages.py`), a metric that has one value only, or is zero from
start to end, is not shown, and there are at most `MOST` of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]  # made when it is imported
)

from zerosearch.callbacks.tensorboard_layout import in_headline

MOST = 120  # curves of a run
_KEPT_FOR_HEADLINES = 30  # of them
_AS_TABLE = ("start/", "test/")  # results, which `TensorBoardPages` shows
_OF_ENGINE = re.compile(r"val/[^/]+/.+")  # of a validation by an engine of its own ...
_CHOSEN = re.compile(  # ... of whose 70 metrics these are curves
    r"val/[^/]+/(f1(_low|_high)?|em|cover_em|answered|failed|[^/]+/f1|stop/.+|search/answer_in_.+"
    r"|rollout/(searches|turns|tokens|repetition|truncated))"
)

Moment = tuple[int | None, float]  # policy steps completed, seconds since 1970


@dataclass(slots=True)
class Held:
    """A metric that is not a curve yet: one value, or nothing but zeros."""

    value: float  # the first one; all of them, where there are more
    moments: list[Moment] = field(default_factory=list)


class CurveLogger(TensorBoardLogger):
    """Writes a metric from its second value on, once one of them is not zero; then all of it.

    A bound of an interval may be zero: without it TensorBoard would not draw the interval.

    What was held back until then is written with the step and the time at which it was logged, so
    that each curve has each step once and in order. A checkpoint keeps what is held back
    (`state`), and a run that goes on from it goes on from that (`restore`).

    Args:
        save_dir: folder of the files.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)
        self._shown: set[str] = set()
        self._held: dict[str, Held] = {}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        moment = (step, time.time())
        for name, value in metrics.items():
            if name in self._shown:
                self._write(name, float(value), moment)
            elif is_curve(name) and self._has_room(name):
                self._take(name, float(value), moment)

    def _has_room(self, name: str) -> bool:
        return len(self._shown) < MOST - (0 if in_headline(name) else _KEPT_FOR_HEADLINES)

    def _take(self, name: str, value: float, moment: Moment) -> None:
        held = self._held.setdefault(name, Held(value))
        only_zeros = value == held.value == 0.0 and not _is_bound_of(name, self._shown)
        if not held.moments or only_zeros:
            held.moments.append(moment)
            return
        for earlier in held.moments:
            self._write(name, held.value, earlier)
        self._write(name, value, moment)
        self._shown.add(name)
        del self._held[name]

    def _write(self, name: str, value: float, moment: Moment) -> None:
        step, seconds = moment
        self.experiment.add_scalar(name, value, step, walltime=seconds)

    def state(self) -> dict[str, Any]:
        """What `restore` takes, as plain values that do not change any more."""
        held = {name: (each.value, [*each.moments]) for name, each in self._held.items()}
        return {"shown": sorted(self._shown), "held": held}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; from an empty one as if nothing had been logged."""
        self._shown = {*state.get("shown", ())}
        self._held = {
            name: Held(value, [(step, seconds) for step, seconds in moments])
            for name, (value, moments) in state.get("held", {}).items()
        }

    @rank_zero_only
    def add(self, *summaries: Summary) -> None:
        """Write what is no scalar, as TensorBoard reads it."""
        writer = self.experiment._get_file_writer()
        for summary in summaries:
            writer.add_summary(summary)

    @rank_zero_only
    def save(self) -> None:
        """Without Lightning's file of hyper-parameters: `.hydra/` has them all."""
        self.experiment.flush()


def is_curve(name: str) -> bool:
    """Whether a metric of this name is a curve once it has values to show."""
    if _OF_ENGINE.fullmatch(name):
        return _CHOSEN.fullmatch(name) is not None
    return not name.startswith(_AS_TABLE)


def _is_bound_of(name: str, shown: Collection[str]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in shown for end in ("_low", "_high"))
