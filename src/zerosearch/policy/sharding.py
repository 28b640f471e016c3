"""A causal LM spread over processes by FSDP2: each rank keeps 1/N of every weight.

Every decoder layer is a group that is gathered for its own forward and backward pass alone.
Embeddings, final norm and head form the root's group: `token_logprobs` calls the head chunk by
chunk, and ranks may differ in their number of chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast, get_args

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Dtype
from zerosearch.policy.adaptation import decoder_layers

DTYPES = ("auto", *get_args(Dtype))  # of a setting that may leave it to what there is

# attributes of a model whose parameters do not say them
_COMPUTE_DTYPE = "zerosearch_compute_dtype"
_COMPUTE_DEVICE = "zerosearch_compute_device"


@dataclass(kw_only=True, slots=True, frozen=True)
class Sharding:
    """How models are spread over processes."""

    mesh: DeviceMesh  # of one dimension: the ranks
    device: torch.device  # where this rank computes
    param_dtype: torch.dtype = torch.bfloat16  # of gathered weights, so of the computation
    reduce_dtype: torch.dtype = torch.float32  # of the sum of gradients over ranks
    cpu_offload: bool = False  # shards, gradients and optimizer states live in host memory
    reshard_after_forward: bool = True  # False keeps gathered layers until their backward pass


def shard_model(model: nn.Module, sharding: Sharding) -> None:
    """Spread the weights over the ranks and give those on the meta device memory, in place.

    A frozen model frees its root group after every forward pass; in a model that is trained that
    group stays until the backward pass, which needs it first.

    Args:
        model: causal LM or PeftModel around one. Tensors on the meta device get memory that is
            not initialised; all others must be the same on every rank.
        sharding: how.

    Raises:
        InputError: the model has no layers that can be gathered one by one.
    """
    layers = decoder_layers(model)
    if not layers:
        raise InputError(
            f"trainer=fsdp: {type(base_model(model)).__name__} has no decoder layers that could be "
            "gathered one by one; use trainer=gpu or trainer=ddp"
        )
    trained = any(parameter.requires_grad for parameter in model.parameters())
    offload = CPUOffloadPolicy(pin_memory=sharding.device.type == "cuda")
    for module in [*layers, model]:
        root = module is model
        fully_shard(
            module,
            mesh=sharding.mesh,
            reshard_after_forward=not trained if root else sharding.reshard_after_forward,
            mp_policy=MixedPrecisionPolicy(
                param_dtype=sharding.param_dtype,
                reduce_dtype=sharding.reduce_dtype,
                # between layers activations stay in param_dtype, as inside one
                output_dtype=torch.float32 if root else None,
            ),
            offload_policy=offload if sharding.cpu_offload else OffloadPolicy(),
        )
    setattr(model, _COMPUTE_DTYPE, sharding.param_dtype)
    setattr(model, _COMPUTE_DEVICE, sharding.device)
    _materialise(model, sharding)


def _materialise(model: nn.Module, sharding: Sharding) -> None:
    real = {
        name: tensor.detach().clone() for name, tensor in named_tensors(model) if not tensor.is_meta
    }
    model.to_empty(device="cpu" if sharding.cpu_offload else sharding.device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(sharding.device))  # buffers are never offloaded
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            if name in real:
                tensor.copy_(real[name])


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and all buffers; a tied parameter once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def base_model(model: nn.Module) -> PreTrainedModel:
    """The causal LM itself, without what PEFT has put around it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return cast(PreTrainedModel, base)


def compute_buffers(base: PreTrainedModel) -> None:
    """Give buffers that no checkpoint holds (rotary frequencies) their values, in place.

    Weights come afterwards: those of a module with such a buffer (Gemma's scaled embedding) are
    drawn anew with it.
    """
    with torch.no_grad():
        for module in base.modules():
            if module._non_persistent_buffers_set:
                base._init_weights(module)


def is_sharded(model: nn.Module) -> bool:
    """Whether every use of the weights is a collective."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def record_autocast(model: nn.Module, precision: str) -> None:
    """Let `compute_dtype` know that forward passes run under the autocast of a trainer.

    Args:
        model: just loaded.
        precision: of the trainer, by Lightning's name.
    """
    if precision == "bf16-mixed":  # the only one that casts and is not refused
        setattr(model, _COMPUTE_DTYPE, torch.bfloat16)


def compute_dtype(model: nn.Module) -> torch.dtype:
    """What matrices are multiplied in: the dtype of gathered shards, of autocast, or of weights."""
    return getattr(model, _COMPUTE_DTYPE, None) or next(model.parameters()).dtype


def compute_dtype_name(model: nn.Module) -> str:
    """The same as settings name it."""
    return str(compute_dtype(model)).removeprefix("torch.")


def compute_device(model: nn.Module) -> torch.device:
    """Where a forward pass runs and leaves its results; offloaded weights are elsewhere."""
    return getattr(model, _COMPUTE_DEVICE, None) or next(model.parameters()).device


def reshard(model: nn.Module) -> None:
    """Free the weights that a forward pass without backward has left gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
