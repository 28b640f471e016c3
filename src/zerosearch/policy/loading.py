"""A policy and its reference, whole or so that no rank ever holds more of them than its share.

Weights in safetensors are read slice by slice: the model is built without memory, sharded, and each
rank reads its own rows from the files. Everything else (GGUF, torch's old format, random weights,
weights that transformers renames or fuses, adapters that start from the base) is loaded whole by
rank 0, which then hands it out one tensor at a time.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from zerosearch.core.distributed import gather_objects
from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.policy.adaptation import base_free, start_adapters, switch_off_dropout
from zerosearch.policy.architecture import check_architecture
from zerosearch.policy.logprobs import verify_logprobs
from zerosearch.policy.reference import ReferencePolicy
from zerosearch.policy.sharding import (
    Sharding,
    base_model,
    compute_buffers,
    local_tensor,
    named_tensors,
    reshard,
    shard_model,
)
from zerosearch.policy.source import PolicySource

# puts another head into a model and returns the name of the head's module
HeadReplacement = Callable[[nn.Module], str]


def load_policy(source: PolicySource, sharding: Sharding | None) -> nn.Module:
    """Load a policy as `PolicySource.load_model` does; a collective where it is sharded.

    Args:
        source: the policy.
        sharding: how it is spread over the ranks; None loads it whole.

    Returns:
        A causal LM or PeftModel in training mode; where sharded, its parameters are DTensors.

    Raises:
        InputError: as `load_model`; where sharded also: the files lack tensors of the model or hold
            others.
    """
    if sharding is None:
        return source.load_model()
    model = load_sharded(source, sharding)
    verify_logprobs(model)
    reshard(model)
    return model


def load_sharded(
    source: PolicySource, sharding: Sharding, replace_head: HeadReplacement | None = None
) -> nn.Module:
    """Load a policy spread over the ranks, with another head where wanted; a collective.

    Args:
        source: the policy.
        sharding: how it is spread.
        replace_head: is given each model made on the way, with its adapters, before it is spread.
            The new head has its values; that in the files is not read.

    Returns:
        As of `load_policy`, but not verified.

    Raises:
        InputError: as of `load_policy`.
    """
    source.check()
    files = source.safetensors_files()
    model = _from_files(source, sharding, files, replace_head) if files else None
    if model is None:
        model = _from_rank_0(source, sharding, replace_head)
    return model.train()


def make_reference(
    source: PolicySource, model: nn.Module, sharding: Sharding | None
) -> ReferencePolicy:
    """The reference policy of a policy just loaded, sharded as the policy is.

    Args:
        source: what the policy was loaded from.
        model: as `load_policy` returned it.
        sharding: as for the policy.
    """
    if sharding is None or isinstance(model, PeftModel):
        return ReferencePolicy.from_policy(model)
    # shards in the dtype of the computation: gathering would round them to it anyway
    twin = _skeleton(source, base_model(model).config).requires_grad_(False)
    for parameter in twin.parameters():
        parameter.data = parameter.data.to(sharding.param_dtype)
    shard_model(twin, sharding)
    return ReferencePolicy.from_policy(model, twin)


def _skeleton(source: PolicySource, config: PretrainedConfig) -> nn.Module:
    """The model of `source` on the meta device, without dropout."""
    model = source.build_on_meta(copy.deepcopy(config))
    switch_off_dropout(base_model(model))
    return model


def _from_files(
    source: PolicySource,
    sharding: Sharding,
    files: dict[str, Path],
    replace_head: HeadReplacement | None,
) -> nn.Module | None:
    """The model with slices of its files; None where slices of files are not what it needs."""
    config, generation_config = source.load_file_configs()
    check_architecture(source.architecture, config)
    if get_checkpoint_conversion_mapping(config.model_type) is not None:
        return None
    model = _skeleton(source, config)
    if source.lora is not None and not base_free(model, source.lora):
        return None
    base = base_model(model)
    if generation_config is not None:
        base.generation_config = generation_config
    if source.lora is not None:
        start_adapters(model, source.lora, source.init_seed)
    new_head = None if replace_head is None else replace_head(model)
    _check_names(base, files, new_head)
    shard_model(model, sharding)
    compute_buffers(base)  # before the weights: it draws those of a module that has buffers, too
    _read_shards(dict(_saved_tensors(base, new_head)), files)
    return model


def _saved_tensors(base: PreTrainedModel, new_head: str | None) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint holds of the model, by its names there; of tied tensors every name."""
    for name, tensor in base.state_dict(keep_vars=True).items():
        if ".lora_" not in name and not _is_inside(name, new_head):
            yield name.replace(".base_layer.", "."), tensor


def _is_inside(name: str, module: str | None) -> bool:
    return module is not None and name.startswith(f"{module}.")


def _check_names(base: PreTrainedModel, files: dict[str, Path], new_head: str | None) -> None:
    """Raise where the names in the files are not those of the model."""
    names: dict[int, set[str]] = {}
    for name, tensor in _saved_tensors(base, new_head):
        names.setdefault(id(tensor), set()).add(name)
    missing = [min(group) for group in names.values() if not group & files.keys()]
    known = set().union(*names.values())
    ignored = base._keys_to_ignore_on_load_unexpected or []
    unexpected = [
        name
        for name in files
        if name not in known
        and not _is_inside(name, new_head)
        and not any(re.search(pattern, name) for pattern in ignored)
    ]
    if missing or unexpected:
        raise InputError(
            f"the weights in {next(iter(files.values())).parent} are not those of "
            f"{type(base).__name__}: {len(missing)} tensors are missing ({_few(missing)}), "
            f"{len(unexpected)} are not of the model ({_few(unexpected)}); set model.path to a "
            "folder written by save_pretrained"
        )


def _few(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) or "none"


def _read_shards(tensors: dict[str, Tensor], files: dict[str, Path]) -> None:
    """Fill each tensor with this rank's rows of the tensor of its name in the files."""
    by_file: dict[Path, list[str]] = {}
    for name in tensors.keys() & files.keys():
        by_file.setdefault(files[name], []).append(name)
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as opened:
            for name in sorted(names):
                stored, target = opened.get_slice(name), tensors[name]
                if tuple(stored.get_shape()) != tuple(target.shape):
                    raise InputError(
                        f"{name} has shape {stored.get_shape()} in {file}, but the model of its "
                        f"config has {list(target.shape)}: config.json and weights do not belong "
                        "together"
                    )
                local_tensor(target.detach()).copy_(stored[_own_rows(target)])


def _from_rank_0(
    source: PolicySource, sharding: Sharding, replace_head: HeadReplacement | None
) -> nn.Module:
    whole, failure = None, None
    if dist.get_rank(sharding.mesh.get_group()) == 0:
        try:
            whole = source.load_model()
        except ZeroSearchError as error:
            failure = str(error)
    base = None if whole is None else base_model(whole)
    told: tuple[Any, ...] = (failure, base and base.config, base and base.generation_config)
    failure, config, generation_config = gather_objects(told)[0]
    if failure is not None:
        raise InputError(failure)
    model = _skeleton(source, config)
    base_model(model).generation_config = generation_config
    for each in (model, whole):
        if replace_head is not None and each is not None:
            replace_head(each)
    shard_model(model, sharding)
    values = {} if whole is None else dict(named_tensors(whole))
    for name, target in named_tensors(model):
        shape, dtype = target.shape, target.dtype
        value = (
            values[name].detach().to(sharding.device, dtype)
            if values
            else torch.empty(shape, dtype=dtype, device=sharding.device)
        )
        dist.broadcast(value, group_src=0, group=sharding.mesh.get_group())
        local_tensor(target.detach()).copy_(value[_own_rows(target)])
    return model


def _own_rows(target: Tensor) -> slice:
    """The rows of the whole tensor that this rank keeps; FSDP2 cuts as `torch.chunk` does."""
    if not isinstance(target, DTensor):
        return slice(None)
    rows = -(-target.shape[0] // target.device_mesh.size())
    start = min(target.device_mesh.get_local_rank() * rows, target.shape[0])
    return slice(start, start + target.to_local().shape[0])
