"""Where a check runs: on GPUs, or with tiny sizes on CPUs, so that it moves with the code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


def on_gpus(count: int = 1) -> list[pytest.MarkDecorator]:
    """The marks of a test that needs so many GPUs; without them it is skipped, and says why."""
    wanted = "a CUDA device" if count == 1 else f"{count} CUDA devices"
    reason = f"needs {wanted}; {GPUS or 'none'} visible here"
    return [pytest.mark.gpu, pytest.mark.skipif(count > GPUS, reason=reason)]


def everywhere(gpus: int = 1, *, cpu: Any = pytest.mark.slow) -> list[Any]:
    """Parameters of a check that runs on so many GPUs, and on CPUs.

    Args:
        gpus: that the first variant needs.
        cpu: marks of the second one.
    """
    return [pytest.param("cuda", marks=on_gpus(gpus)), pytest.param("cpu", marks=cpu)]


def trainer_of(name: str, device: str, devices: int = 1) -> list[str]:
    """Overrides that choose `trainer=gpu` or `trainer=fsdp`, or the same on CPUs."""
    if name == "gpu":
        return ["trainer=gpu" if device == "cuda" else "trainer=cpu", f"trainer.devices={devices}"]
    chosen = [f"trainer={name}", f"trainer.devices={devices}"]
    if device == "cpu":
        chosen += ["trainer.accelerator=cpu", "trainer.strategy.param_dtype=float32"]
    return chosen
