"""Noise that follows the policy: more while it succeeds, less while it does not."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from zerosearch.callbacks.policy_module import PolicyModule
from zerosearch.callbacks.record_callback import RecordCallback
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Positive, Share
from zerosearch.training.step_record import StepRecord


class AdaptiveCurriculum(RecordCallback):
    """Moves the noise probability by `rate * (metric - target)` after every policy step.

    A controller of the difficulty like that of self-paced learning (Kumar et al. 2010); not in the
    paper, whose curriculum knows the step alone. With `rollout.lag=1` it acts one step later.

    Args:
        start: noise probability of the first policy step and the least of all, in [0, 1].
        end: largest noise probability, in [start, 1].
        target: of the metric, at which the probability stays.
        rate: change per policy step for a metric that is 1 above the target.
        metric: of a policy step, for example reward/f1 or reward/em.

    Raises:
        InputError: a setting is out of its range.
    """

    def __init__(
        self,
        start: Share = 0.0,
        end: Share = 0.5,
        target: float = 0.5,
        rate: Positive = 0.05,
        metric: str = "reward/f1",
    ) -> None:
        if not 0.0 <= start <= end <= 1.0:
            raise InputError(f"curriculum start={start}, end={end}: give 0 <= start <= end <= 1")
        if not rate > 0.0:
            raise InputError(f"curriculum rate={rate}: give a positive number, such as 0.05")
        self.start, self.end, self.target, self.rate = start, end, target, rate
        self.metric = metric
        self.noise_probability = float(start)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._set(pl_module)

    def on_record(self, trainer: Trainer, pl_module: PolicyModule, record: StepRecord) -> None:
        if record.phase != "train" or record.metrics.get("rollout/valid") == 0.0:
            return  # of a step in which every search failed nothing is known of the policy
        if self.metric not in record.metrics:
            known = ", ".join(sorted(name for name in record.metrics if "reward/" in name))
            raise InputError(f"curriculum metric={self.metric!r} is not measured: use {known}")
        moved = self.noise_probability + self.rate * (record.metrics[self.metric] - self.target)
        self.noise_probability = min(max(moved, self.start), self.end)
        self._set(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"noise_probability": self.noise_probability}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.noise_probability = min(max(state_dict["noise_probability"], self.start), self.end)

    def _set(self, pl_module: PolicyModule) -> None:
        pl_module.noise_probability = self.noise_probability
        pl_module.next_noise_probability = self.noise_probability
