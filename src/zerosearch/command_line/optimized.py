"""What a sweep that searches for the best settings goes by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from zerosearch.core.errors import InputError, ZeroSearchError

if TYPE_CHECKING:
    from omegaconf import DictConfig


class JobFailed(ZeroSearchError):
    """A job of a sweep did not end well; the others run all the same."""


def check_optimized(cfg: DictConfig) -> None:
    """Check what a sweep that searches for the best settings goes by.

    Raises:
        InputError: `optimized` names no direction, or another one than the sweeper, or a metric
            that no job will have.
    """
    if "optimized" not in cfg:
        return
    metric, direction = str(cfg.optimized.metric), cfg.optimized.direction
    if direction not in ("maximize", "minimize"):
        raise InputError(f"optimized.direction={direction}: give maximize or minimize")
    phase, _, name = metric.partition("/")
    if not name:
        raise InputError(f"optimized.metric={metric}: give a name of summary.json, such as test/f1")
    evaluations = cfg.get("evaluation") or {}
    if phase in ("start", "test") and evaluations:
        known = [*("f1", "em", "cover_em"), *evaluations]
        if name.split("/")[0] not in known:
            found = ", ".join(f"{phase}/{each}" for each in known)
            raise InputError(f"optimized.metric={metric} is not measured; there are {found}")
    if not _searches():
        return
    if phase in ("start", "test") and not cfg.test:
        raise InputError(f"optimized.metric={metric} is not measured with test=false")
    wanted = HydraConfig.get().sweeper.get("direction")
    wanted = wanted.name if isinstance(wanted, Enum) else wanted
    if isinstance(wanted, str) and wanted != direction:
        raise InputError(
            f"optimized.direction={direction}, and hydra.sweeper.direction={wanted}: give the same"
        )


def optimized_value(cfg: DictConfig, facts: Mapping[str, Any]) -> float | None:
    """What a sweep goes by, of a job's summary; None where it lacks it and nobody searches.

    Raises:
        JobFailed: the sweeper searches by it.
    """
    metric = OmegaConf.select(cfg, "optimized.metric")
    value = facts.get(metric)
    if metric is None or not _searches():
        return value
    if value is None:
        raise JobFailed(f"optimized.metric={metric}: summary.json has none; choose one that it has")
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise JobFailed(f"optimized.metric={metric} is {value} in summary.json, no finite number")
    return value


def _searches() -> bool:
    """Whether this process is of a sweep whose sweeper goes by what its jobs return."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return "BasicSweeper" not in HydraConfig.get().sweeper["_target_"]
