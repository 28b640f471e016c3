"""What callbacks may rely on in the module they are attached to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from zerosearch.core.ranges import Dtype
from zerosearch.training.step_record import StepRecord


class PolicyModule(Protocol):
    """The part of the policy's LightningModule that callbacks read and write.

    One training batch is one policy step; `trainer.global_step` counts optimizer updates, of which
    a policy step has several, so that everything a user sees is counted with `policy_step`.
    """

    policy_step: int  # policy steps completed; raised at the end of a training step
    policy_steps: int  # policy steps of the whole run
    noise_probability: float  # of the simulated searches of the next policy step
    next_noise_probability: float  # of the step after that one, which may be sampled with it
    healthy: bool  # False while the last policy step looks like a collapse
    lag: int  # policy steps that sampling is ahead of training
    start_metrics: dict[str, float]  # of the evaluation before training, also of a resumed run
    watched: int  # trajectories of each step whose entropies callbacks want
    latest: StepRecord | None  # the last policy step of this process
    evaluation_records: list[StepRecord]  # of the last validation or test, one per evaluation

    def text_of(self) -> Callable[[list[int]], str]: ...

    def export_policy(self, folder: Path, dtype: Dtype | None = None) -> None: ...
