"""A LightningModule with the interface callbacks rely on, and a run of it in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from zerosearch.core.ranges import Dtype
from zerosearch.reward.rubric import Rubric
from zerosearch.training.step_record import StepRecord
from zerosearch.types import Document, Question, SearchResult, Trajectory, Turn

UPDATES_PER_STEP = 3  # not a divisor of the usual intervals, as with real mini-batches


def make_trajectory(
    answer: str = "Rome", *, golden: str = "Rome", sibling: int = 0, error: str | None = None
) -> Trajectory:
    """An episode with one search and an answer; with `error` the search has failed."""
    search = Turn(
        text="<think>where</think><search>capital of Italy</search>",
        action="search",
        query="capital of Italy",
        result=SearchResult(
            documents=(Document(title="Italy", text="Its capital is Rome."),),
            requested=2,
            noisy=False,
            latency_s=0.25,
        ),
        observation="<information>Doc 1(Title: Italy) Its capital is Rome.</information>",
        sampled_tokens=5,
        inserted_tokens=7,
    )
    last = Turn(text=f"<answer>{answer}</answer>", action="answer", sampled_tokens=3)
    if error is not None:
        search.result = search.observation = None
    return Trajectory(
        question=Question(uid="geo:1", text="Capital of Italy?", golden_answers=(golden,)),
        group=4,
        sibling=sibling,
        prompt_ids=[1, 2],
        turns=[search] if error is not None else [search, last],
        stop_reason="search_failed" if error is not None else "answer",
        error=error,
    )


def make_record(step: int, phase: str, trajectories: list[Trajectory], **fields: Any) -> StepRecord:
    """A record with the rubric's scores and, in training, advantages 0.5, 1.5, ..."""
    rubric = Rubric()
    return StepRecord(
        step=step,
        phase=phase,
        trajectories=trajectories,
        scores=[rubric.score(each) if each.valid else None for each in trajectories],
        advantages=[n + 0.5 for n in range(len(trajectories))] if phase == "train" else [],
        **{"noise_probability": 0.0, "metrics": {}, **fields},
    )


class StepNumbers:
    """Endless loader of 0.0, 1.0, ... that resumes at the step that is trained next."""

    def __init__(self, module: PolicyStub) -> None:
        self._module = module
        self._start = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        step = self._start
        while True:
            yield torch.tensor([float(step)])
            step += 1

    def state_dict(self) -> dict[str, int]:
        return {"step": self._module.policy_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._start = state_dict["step"]


class PolicyStub(LightningModule):
    """Learns by Adam from the batch's number and the noise probability.

    Args:
        policy_steps: of the whole run.
        on_step: called inside each training step with its number, counted from 0.
        on_validation: called inside each validation with the policy steps completed.
    """

    def __init__(
        self,
        policy_steps: int = 6,
        on_step: Callable[[int], None] = lambda step: None,
        on_validation: Callable[[int], None] = lambda step: None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.policy_step = 0
        self.policy_steps = policy_steps
        self.noise_probability = 0.0
        self.next_noise_probability = 0.0
        self.healthy = True
        self.lag = 0
        self.watched = 0
        self.latest: StepRecord | None = None
        self.evaluation_records: list[StepRecord] = []
        self.start_metrics: dict[str, float] = {}
        self.phase = "val"
        self.trained: list[tuple[int, float, float]] = []  # step, batch, noise probability
        self.validated: list[int] = []
        self._on_step, self._on_validation = on_step, on_validation
        self.extra_metrics: Callable[[int], dict[str, float]] = lambda step: {}

    def text_of(self) -> Callable[[list[int]], str]:
        return lambda ids: "".join(map(chr, ids))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)

    def train_dataloader(self) -> StepNumbers:
        return StepNumbers(self)

    def val_dataloader(self) -> list[int]:
        return [0, 1]

    def test_dataloader(self) -> list[int]:
        return [0]

    def training_step(self, batch: torch.Tensor, batch_index: int) -> None:
        self._on_step(self.policy_step)
        optimizer = self.optimizers()
        loss = torch.tensor(0.0)
        for _ in range(UPDATES_PER_STEP):
            optimizer.zero_grad()  # type: ignore[union-attr]
            loss = ((self.weight - batch) ** 2).sum() * (1 + self.noise_probability)
            self.manual_backward(loss)
            optimizer.step()  # type: ignore[union-attr]
        metrics = {"loss/policy": loss.item(), "time/rollout_s": time.perf_counter()}
        metrics |= self.extra_metrics(self.policy_step)
        if self.policy_step == 4:
            metrics["search/failed"] = 0.5  # a metric that appears late
        trajectories = [make_trajectory(), make_trajectory("Paris", sibling=1)]
        self.latest = make_record(self.policy_step, "train", trajectories, metrics=metrics)
        self.trained.append((self.policy_step, batch.item(), self.noise_probability))
        self.policy_step += 1

    def validation_step(self, batch: int, batch_index: int) -> None:
        if batch_index == 0:
            self._on_validation(self.policy_step)

    def on_validation_epoch_end(self) -> None:
        self.validated.append(self.policy_step)
        self.evaluation_records = [
            make_record(
                self.policy_step,
                f"{self.phase}/{engine}",
                [make_trajectory()],
                metrics={f"{self.phase}/{engine}/f1": float(self.weight[index])},
            )
            for index, engine in enumerate(("scripted", "bm25"))
        ]

    def test_step(self, batch: int, batch_index: int) -> None:
        pass

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["policy_step"] = self.policy_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.policy_step = checkpoint["policy_step"]

    def export_policy(self, folder: Path, dtype: Dtype | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "exported").write_text(str(self.policy_step))


def make_trainer(
    policy_steps: int = 6, *, callbacks: list[Any], val_every: int | None = 3, **arguments: Any
) -> Trainer:
    """The trainer a run uses: one epoch of `policy_steps` batches, on one CPU process."""
    return Trainer(
        max_epochs=1,
        limit_train_batches=policy_steps,
        **({"limit_val_batches": 0} if val_every is None else {"val_check_interval": val_every}),
        num_sanity_val_steps=0,
        callbacks=callbacks,
        **{
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "check_val_every_n_epoch": None,
            "enable_checkpointing": any("Checkpoint" in type(each).__name__ for each in callbacks),
            **arguments,
        },
    )
