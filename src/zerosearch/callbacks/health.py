"""Watches a run and ends it when it collapses, before the checkpoints of better days are gone."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from zerosearch.callbacks.health_rules import HealthRule, RuleTracker
from zerosearch.callbacks.policy_module import PolicyModule
from zerosearch.callbacks.record_callback import RecordCallback
from zerosearch.training.failures import TrainingCollapse
from zerosearch.training.step_record import StepRecord

log = logging.getLogger(__name__)


class HealthMonitor(RecordCallback):
    """Checks rules after every policy step; warns, or raises `TrainingCollapse` on all ranks.

    As long as a rule that may stop the run is in doubt, the module is marked unhealthy, and
    `PolicyCheckpoint` keeps the last checkpoint from before.

    Args:
        rules: by name; None switches one off.
    """

    def __init__(self, rules: Mapping[str, HealthRule | None]) -> None:
        self._trackers = {name: RuleTracker(rule) for name, rule in rules.items() if rule}
        self._told: set[str] = set()  # rules whose present warning is out
        self._looked = False  # whether the metrics are there that rules look at

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.healthy = self._is_healthy()  # also of a resumed run

    def on_record(self, trainer: Trainer, pl_module: PolicyModule, record: StepRecord) -> None:
        if record.phase != "train":
            return
        if not self._looked and trainer.is_global_zero:
            self._warn_of_misspelt(record.metrics)
        self._looked = True
        for tracker in self._trackers.values():
            if tracker.rule.metric in record.metrics:
                tracker.add(record.metrics[tracker.rule.metric])
        pl_module.healthy = self._is_healthy()
        fired = {name: tracker for name, tracker in self._trackers.items() if tracker.fired}
        for name, tracker in fired.items():
            message = (
                f"policy step {pl_module.policy_step}: health rule {name}: {tracker.describe()}. "
                f"{tracker.rule.advice}"
            )
            if tracker.rule.action == "stop":
                raise TrainingCollapse(message)
            if name not in self._told and trainer.is_global_zero:
                log.warning(message)
        self._told = set(fired)

    def _warn_of_misspelt(self, metrics: Mapping[str, float]) -> None:
        """Some metrics come later or not at all; one that differs by a letter is another."""
        for name, tracker in self._trackers.items():
            metric = tracker.rule.metric
            if metric not in metrics and (
                close := difflib.get_close_matches(metric, metrics, n=1, cutoff=0.85)
            ):
                log.warning(
                    "health.%s.metric=%s is not among the metrics of this step, without which the "
                    "rule cannot fire: did you mean %s?",
                    name,
                    metric,
                    close[0],
                )

    def _is_healthy(self) -> bool:
        return not any(t.doubtful and t.rule.action == "stop" for t in self._trackers.values())

    def state_dict(self) -> dict[str, Any]:
        return {name: tracker.state_dict() for name, tracker in self._trackers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, state in state_dict.items():
            if name in self._trackers:  # rules may be changed in a resumed run
                self._trackers[name].load_state_dict(state)
