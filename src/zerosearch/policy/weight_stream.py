"""A policy's weights one tensor at a time, as engines and exports want them.

Nothing is merged in place and no second model is held: beside the policy there are the tensors of
one collective, or one layer where adapters have to be merged, at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zerosearch.policy.gathering import gather_all
from zerosearch.policy.sharding import base_model, compute_device, reshard


@torch.no_grad()
def stream_weights(
    model: nn.Module, *, dtype: torch.dtype | None = None, merge: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a causal LM once, whole, under its name in the plain model.

    Under FSDP2 this is a collective: every rank iterates to the end, in step with the others.

    Args:
        model: causal LM or PeftModel around one, plain or sharded.
        dtype: of the floating-point tensors that come out; None keeps the model's.
        merge: whether adapters are merged in; False gives the weights that they adapt.

    Yields:
        Name and detached tensor, which may share memory with the model's; a tied head comes once,
        as the embedding. Persistent buffers are weights, too.
    """
    reshard(model)
    device = compute_device(model)
    yield from gather_all(_plain_tensors(model, device, merge=merge), dtype=dtype, device=device)


@torch.no_grad()
def adapter_weights(model: PeftModel) -> dict[str, Tensor]:
    """The active adapter's tensors, whole, under the names of PEFT's files; collective if sharded.

    Returns:
        Name -> detached tensor, which may share memory with the model's.
    """
    reshard(model)
    state = get_peft_model_state_dict(model, adapter_name=model.active_adapters[0])
    detached = ((name, tensor.detach()) for name, tensor in state.items())
    return dict(gather_all(detached, dtype=None, device=compute_device(model)))


def gather(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded, where it lies; a collective where it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _plain_tensors(
    model: nn.Module, device: torch.device, *, merge: bool
) -> Iterator[tuple[str, Tensor]]:
    """What `stream_weights` says, but sharded where the model's are, and in their dtype."""
    seen: set[int] = set()
    for prefix, module in _layers(base_model(model), "", merge):
        is_copy = merge and isinstance(module, BaseTunerLayer)
        for name, tensor in _own_tensors(_merged_layer(module, device) if is_copy else module):
            if not is_copy and id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield prefix + name, tensor.detach()


def _layers(module: nn.Module, prefix: str, adapted: bool) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the plain model with the prefix of their tensors.

    Args:
        module: where to begin.
        prefix: of its tensors' names.
        adapted: whether adapted layers come with their adapters, as a whole, or without.
    """
    if isinstance(module, ModulesToSaveWrapper):
        saved = module.modules_to_save[module.active_adapters[0]]
        module = saved if adapted else module.original_module
    elif isinstance(module, BaseTunerLayer) and not adapted:
        module = module.get_base_layer()
    yield prefix, module
    if not isinstance(module, BaseTunerLayer):
        for name, child in module.named_children():
            yield from _layers(child, f"{prefix}{name}.", adapted)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of the module itself."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def _merged_layer(module: nn.Module, device: torch.device) -> nn.Module:
    """A plain layer with what the adapter has learned; `module` is left as it is.

    The copy gets whole tensors in the place of sharded ones: PEFT's own merge, which knows every
    kind of adapter, then does the arithmetic, in the dtype in which the weights are kept.
    """
    numbered = {str(id(parameter)): parameter.detach() for parameter in module.parameters()}
    whole = {
        int(number): nn.Parameter(
            tensor if isinstance(numbered[number], DTensor) else tensor.clone(), requires_grad=False
        )
        for number, tensor in gather_all(numbered.items(), dtype=None, device=device)
    }
    merged = copy.deepcopy(module, memo=whole)
    assert isinstance(merged, BaseTunerLayer)
    merged.merge()
    return merged.get_base_layer()
