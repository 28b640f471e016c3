"""How a trainer has to compute for this project's modules, whatever way it was made."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator

from zerosearch.core.errors import InputError
from zerosearch.policy.source import PolicySource
from zerosearch.training.sharded_strategy import FullyShardedStrategy

# by both of Lightning's names
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")


class KeptWorkspaces(CUDAAccelerator):
    """Lightning's GPUs, on which cuBLAS keeps its workspaces between the stages of a run.

    Lightning frees them before and after every stage. CUDA graphs have their addresses: those of
    vLLM's engine, which lives through all stages, would write to memory that is free, or somebody
    else's by then (pytorch/pytorch#193402).
    """

    def setup(self, trainer: Trainer) -> None:
        self.set_nvidia_flags(trainer.local_rank)
        torch.cuda.empty_cache()

    def teardown(self) -> None:
        torch.cuda.empty_cache()


def prepare_trainer(trainer: Trainer, policy: PolicySource) -> None:
    """Let every evaluation compute on tensors like any other, and CUDA graphs outlive a stage.

    Called before a model is loaded.

    Unless its backend is gloo, Lightning evaluates in `torch.inference_mode`, whose tensors have no
    version counter: the views of shards that FSDP2 and the streaming of weights make need one.
    `torch.no_grad` takes its place, as in the validations within `fit`.

    Raises:
        InputError: as `check_precision`; or modules of two dtypes would meet without a cast.
    """
    check_precision(trainer.precision)
    casts = trainer.precision != "32-true" or isinstance(trainer.strategy, FullyShardedStrategy)
    if not casts:
        _check_one_dtype(policy)
    trainer.validate_loop.inference_mode = False
    trainer.test_loop.inference_mode = False
    if isinstance(trainer.accelerator, CUDAAccelerator):
        trainer.strategy.accelerator = KeptWorkspaces()


def check_precision(name: Any) -> None:
    """Raise where a trainer's precision would train weights other than in float32.

    Args:
        name: Lightning's, or None for its default.

    Raises:
        InputError: weights would be converted, so that small updates are rounded away, or gradients
            come scaled to where they are clipped.
    """
    if name is not None and str(name) not in PRECISIONS:
        raise InputError(
            f"trainer.precision={name}: weights that are trained stay in float32 here, and "
            "gradients are not scaled; use bf16-mixed, which computes in bfloat16, or 32-true"
        )


def _check_one_dtype(policy: PolicySource) -> None:
    whole = None if policy.lora is None else policy.lora.modules_to_save
    if whole and policy.dtype != "float32":
        raise InputError(
            f"model.lora.modules_to_save={whole}: what is trained is kept in float32, the rest in "
            f"model.dtype={policy.dtype}, and trainer.precision=32-true casts neither; use "
            "trainer.precision=bf16-mixed or model.dtype=float32"
        )
