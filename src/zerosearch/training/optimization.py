"""Optimizers and schedules of what is trained, and whether the algorithm suits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.core.errors import InputError
from zerosearch.generation.generator import Sampling
from zerosearch.policy.source import PolicySource

OptimizerFactory = Callable[..., Optimizer]  # from parameters
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]  # and the number of updates


def make_optimizers(
    algorithm: Algorithm,
    policy_steps: int,
    policy: tuple[nn.Module, OptimizerFactory, ScheduleFactory],
    critic: nn.Module | None,
) -> list[dict[str, Any]]:
    """What Lightning wants from `configure_optimizers`: the policy's first, then the critic's.

    Args:
        algorithm: updates per step, and the critic's settings.
        policy_steps: of the whole run.
        policy: the model and what makes its optimizer and schedule.
        critic: where the algorithm has one.
    """
    resting = 0 if algorithm.critic is None else algorithm.critic.warmup_steps
    found = [optimized(*policy, (policy_steps - resting) * algorithm.updates_per_step)]
    if critic is not None and algorithm.critic is not None:
        settings = algorithm.critic
        updates = policy_steps * algorithm.updates_per_step
        found.append(optimized(critic, settings.optimizer, settings.schedule, updates))
    return found


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Learning rate, weight decay and so on of each parameter group."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def restore_settings(
    optimizers: Sequence[Optimizer],
    schedules: Sequence[Any],
    settings: Sequence[Sequence[dict[str, Any]]],
) -> None:
    """Let what is configured win over what a checkpoint has brought, so that it can be changed.

    A schedule goes on where it was: a peak rate of half the old one halves the present rate.

    Args:
        optimizers: whose parameter groups come from a checkpoint.
        schedules: of their learning rates.
        settings: of their groups when they were made from the configuration and given a schedule.
    """
    for optimizer, schedule, groups in zip(optimizers, schedules, settings, strict=True):
        for index, (group, made) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
            if group["initial_lr"] != made["initial_lr"]:
                group["lr"] *= made["initial_lr"] / group["initial_lr"]
                schedule.base_lrs[index] = made["initial_lr"]
            group.update({name: value for name, value in made.items() if name != "lr"})


def check_suits(
    algorithm: Algorithm, policy: PolicySource, policy_steps: int, sampling: Sampling
) -> None:
    """Raise where policy, length or sampling of a run do not suit its algorithm.

    Raises:
        InputError: names the setting and the remedy.
    """
    if policy_steps < 1:
        raise InputError(f"policy_steps={policy_steps}: give 1 or more")
    if sampling.temperature == 0:
        raise InputError("sampling.temperature=0: greedy siblings are all alike; use 1.0")
    if algorithm.reference_reset_steps is not None and policy.lora is not None:
        raise InputError(
            f"algorithm.reference_reset_steps={algorithm.reference_reset_steps}: with model.lora "
            "the reference is the policy without its adapters and cannot be reset; set it to null, "
            "or train in full (model.lora=null)"
        )
    critic = algorithm.critic
    if critic is not None and critic.warmup_steps >= policy_steps:
        raise InputError(
            f"algorithm.critic.warmup_steps={critic.warmup_steps} leaves none of policy_steps="
            f"{policy_steps} for the policy to learn in: give less, or more policy_steps"
        )


def check_strategy(algorithm: Algorithm, strategy: Strategy) -> None:
    """Raise where a strategy expects every backward pass to reach both models.

    Raises:
        InputError: names the setting and the remedy.
    """
    if (
        algorithm.critic is not None
        and isinstance(strategy, DDPStrategy)
        and not strategy._ddp_kwargs.get("find_unused_parameters")
    ):
        raise InputError(
            "trainer=ddp: policy and critic have backward passes of their own, which plain DDP "
            "waits for together; set trainer.strategy.find_unused_parameters=true"
        )


def optimized(
    model: nn.Module, optimizer: OptimizerFactory, schedule: ScheduleFactory, updates: int
) -> dict[str, Any]:
    """What Lightning wants for one model.

    Args:
        model: of which what is trained is optimised.
        optimizer: makes its optimizer.
        schedule: makes the schedule of that.
        updates: of the whole run.
    """
    made = optimizer([p for p in model.parameters() if p.requires_grad])
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule(made, updates)}}
