"""Whether a GPU multiplies float32 matrices by its tensor cores."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer


class TensorFloat32(Callback):
    """Lets float32 matrices be multiplied in TF32 where a GPU computes.

    TF32 keeps 10 of the 23 bits of mantissa of what is multiplied; sums stay float32. An A100 does
    156 in place of 19.5 TFLOP/s with it (NVIDIA's data sheet). Nothing is set where a CPU computes,
    whose float32 the same switch of torch may change.

    Args:
        enabled: False multiplies in float32.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        # torch.backends' fp32_precision would leave Lightning's and Inductor's reading of this
        # older setting, which is not deprecated, to fail
        if trainer.strategy.root_device.type == "cuda":
            torch.set_float32_matmul_precision("high" if self.enabled else "highest")
