"""Training runs of a policy of a few words on any number of ranks, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from peft import LoraConfig
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from tests.helpers.engines import ScriptedEngine
from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import make_data, make_training
from tests.helpers.words import COLOURS
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.critic import CriticSettings
from zerosearch.algorithms.values import generalized_advantages
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.policy.source import PolicySource
from zerosearch.policy.weight_stream import gather
from zerosearch.reward.rubric import RewardTerm, Rubric, answer_f1
from zerosearch.training.module import SearchPolicyModule
from zerosearch.training.schedule import warmup_schedule
from zerosearch.training.sharded_strategy import FullyShardedStrategy
from zerosearch.types import Question, Trajectory

STEPS = 5
QUESTIONS = [
    Question(uid=f"q:{n}", text="colour " * (1 + n) + str(n), golden_answers=(COLOURS[n % 4],))
    for n in range(8)
]


@dataclass(kw_only=True, slots=True)
class Job:
    """One training run."""

    policy: Path  # folder of the weights
    out: Path  # where its result goes
    lora: bool = False
    gradient_checkpointing: bool = False
    critic: bool = False
    optimizer: Callable[..., Optimizer] = AdamW
    steps: int = STEPS
    checkpoints: Path | None = None  # save after each step there
    resume: Path | None = None
    poisoned_step: int | None = None  # the last rank's losses are no numbers there
    sharded: bool = True
    strategy: dict[str, Any] | None = None  # settings of FullyShardedStrategy


class Watched(SearchPolicyModule):
    """Keeps the whole gradient of every update, and this rank's bytes at the last one."""

    poisoned_step: int | None = None
    gradients: list[dict[str, Tensor]]
    bytes_held: dict[str, int]

    def configure_optimizers(self) -> Any:
        configured: Any = super().configure_optimizers()
        self.gradients = []
        configured[0]["optimizer"].register_step_pre_hook(self._look)
        return configured

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        last = self.global_rank == self.trainer.world_size - 1
        if last and self.policy_step == self.poisoned_step:
            loss = loss * torch.nan
        super().manual_backward(loss, *args, **kwargs)

    def _look(self, optimizer: Optimizer, *_: Any) -> None:
        assert self.model is not None
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.gradients.append(
            {n: gather(p.grad).clone() for n, p in trained.items() if p.grad is not None}
        )
        states = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
        self.bytes_held = {
            "parameters": local_bytes(self.model.parameters()),
            "gradients": local_bytes(p.grad for p in trained.values()),
            "optimizer": local_bytes(states),
        }


def local_bytes(tensors: Any) -> int:
    """Bytes of this rank's shards."""
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in local)


GRPO = Algorithm(group_size=4, kl_coefficient=0.1, entropy_coefficient=0.01)


def make_ppo(optimizer: Callable[..., Optimizer]) -> Algorithm:
    critic = CriticSettings(optimizer=partial(optimizer, lr=0.003), schedule=warmup_schedule)
    return Algorithm(
        group_size=4,
        advantage=generalized_advantages,
        critic=critic,
        kl_in="reward",
        kl_kind="k1",
        kl_coefficient=0.1,
        inner_epochs=2,
    )


def variety(trajectory: Trajectory) -> float:
    """A reward that an untrained policy gets, too: the share of sampled tokens that are new."""
    pairs = zip(trajectory.response_ids, trajectory.sampled, strict=True)
    tokens = [token for token, flag in pairs if flag]
    return len(set(tokens)) / len(tokens)


def make_job_module(job: Job) -> Watched:
    lora = LoraConfig(r=4, target_modules="all-linear") if job.lora else None
    source = PolicySource(
        path=str(job.policy), lora=lora, gradient_checkpointing=job.gradient_checkpointing
    )
    module = make_training(
        module=Watched,
        policy=source,
        search=ScriptedEngine(["red or blue"]),
        algorithm=make_ppo(job.optimizer) if job.critic else GRPO,
        optimizer=partial(job.optimizer, lr=0.003),
        rubric=Rubric({"f1": RewardTerm(function=answer_f1), "new": RewardTerm(function=variety)}),
        gradient_clip=0.1,
        tokens_per_micro_batch=120,
        policy_steps=job.steps,
    )
    assert isinstance(module, Watched)
    module.poisoned_step = job.poisoned_step
    return module


def train(rank: int, world_size: int, job: Job) -> None:
    """Do a job as one of `world_size` ranks."""
    module = make_job_module(job)
    callbacks = [] if job.checkpoints is None else [PolicyCheckpoint(job.checkpoints, 1, keep=None)]
    settings: dict[str, Any] = {"plugins": [AtomicCheckpointIO()]}
    if job.sharded:
        strategy = FullyShardedStrategy(**{"param_dtype": "float32", **(job.strategy or {})})
        settings["strategy"] = strategy
        settings["plugins"].append(LightningEnvironment())
    trainer = make_trainer(
        job.steps, callbacks=callbacks, val_every=None, devices=world_size, **settings
    )
    trainer.fit(module, make_data(QUESTIONS), ckpt_path=job.resume)
    result = {
        "weights": {n: gather(p.detach()).clone() for n, p in module.named_parameters()},
        "gradients": module.gradients,
        "metrics": module.train_metrics,
        "bytes": module.bytes_held,
        "policy_step": module.policy_step,
        "left": sum(p.grad is not None for p in module.parameters()),
    }
    torch.save(result, job.out.with_name(f"{job.out.name}.{rank}"))


def train_all(rank: int, world_size: int, jobs: list[Job]) -> None:
    """Do several jobs one after the other in the same processes."""
    for job in jobs:
        train(rank, world_size, job)
