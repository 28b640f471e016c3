"""A callback for whole runs: after each phase every tensor of training lies where it belongs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zerosearch.policy.sharding import local_tensor


class DeviceWatch(Callback):
    """Ends the run where a parameter, a gradient or an optimizer state is on another device.

    Args:
        device: type of the one where weights are kept, "cuda" or "cpu" (`cpu_offload`).
    """

    def __init__(self, device: str) -> None:
        self._device = device

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._check("training", trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check("validation", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check("test", trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._check("the start of a checkpoint", trainer, pl_module)

    def _check(self, phase: str, trainer: Trainer, module: LightningModule) -> None:
        root = trainer.strategy.root_device
        wanted = root if self._device == root.type else torch.device(self._device)
        wrong = {
            f"{name} on {tensor.device}"
            for name, tensor in _tensors(trainer, module)
            if tensor.device != wanted
        }
        assert not wrong, f"after {phase}, not on {wanted}: {sorted(wrong)[:5]}"
        if root.type == "cuda":
            assert torch.cuda.current_device() == root.index


def _tensors(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        yield name, local_tensor(parameter.detach())
        if parameter.grad is not None:
            yield f"gradient of {name}", local_tensor(parameter.grad)
    for number, optimizer in enumerate(trainer.optimizers):
        for states in optimizer.state.values():
            for name, state in states.items():
                if isinstance(state, Tensor) and state.ndim:  # steps are counted on the CPU
                    yield f"{name} of optimizer {number}", local_tensor(state)
