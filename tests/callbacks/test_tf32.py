"""TF32 on GPUs, and nothing set on CPUs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zerosearch.callbacks.tf32 import TensorFloat32


@pytest.mark.parametrize(
    ("device", "enabled", "chosen"),
    [("cuda", True, ["high"]), ("cuda", False, ["highest"]), ("cpu", True, []), ("cpu", False, [])],
)
def test_gpus_multiply_float32_in_tf32_unless_told_otherwise(
    device: str, enabled: bool, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    TensorFloat32(enabled).setup(trainer, None, "fit")
    assert seen == chosen
