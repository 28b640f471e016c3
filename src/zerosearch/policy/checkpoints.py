"""Checkpoints of training across numbers of ranks: a folder of shards, or one file.

A sharded run saves a folder (torch's distributed checkpoint beside `meta.pt`), any other run a
file. Here a folder becomes what the file would hold, and the reverse for the optimizer; tensors of
the folder are re-cut for another number of ranks by torch itself.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.policy.shards import data_alone, holding_objects

Shapes = Mapping[str, tuple[int, ...]]

_METADATA_FILE = "meta.pt"  # beside the shards, as Lightning names it
_MODULE = "state_dict."  # of the module's tensors in a folder
_REFUSED = "Weights only load failed"  # torch's words
_OPTIMIZER = re.compile(r"optimizer_(\d+)")  # in a folder: as Lightning numbers them


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether `path` is the folder of a sharded checkpoint."""
    return (path / _METADATA_FILE).is_file()


def read_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint, folder or file, as a single process saves it.

    Args:
        path: of the checkpoint; a folder is read whole into memory.
        mmap: leave the tensors of a file on the disk until they are used.

    Raises:
        InputError: the folder lacks files.
    """
    if not is_sharded_checkpoint(path):
        with naming_damage(path):
            return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    from lightning.fabric.utilities.load import _load_distributed_checkpoint  # takes seconds

    with naming_damage(path):
        FileSystemReader(path).read_metadata()  # where it is missing, torch looks further, noisily
        checkpoint = _load_distributed_checkpoint(path)
    saved = sorted((name for name in checkpoint if _OPTIMIZER.fullmatch(name)), key=_number)
    checkpoint["optimizer_states"] = [_by_position(checkpoint.pop(name)) for name in saved]
    return checkpoint


def read_notes(path: Path) -> dict[str, Any]:
    """What this project's modules note in a checkpoint, folder or file; no tensors are read.

    Raises:
        InputError: it is damaged, or of another program.
    """
    where = path / _METADATA_FILE if is_sharded_checkpoint(path) else path
    if not zipfile.is_zipfile(where):  # as torch saves; it has no error of its own for this
        raise InputError(f"{path} is cut short or no checkpoint: give another one of the run")
    with naming_damage(path):
        saved = torch.load(where, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(saved, dict) or not isinstance(saved.get("zerosearch"), dict):
        raise InputError(f"{path} is no checkpoint of a run: give one of its checkpoints/")
    return saved["zerosearch"]


def read_weights(path: Path, prefix: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Some of the module's tensors by name without prefix; nothing else is read.

    Args:
        path: of the checkpoint; tensors of a file stay on the disk until they are used.
        prefix: of the tensors' names.
        dtype: of floating-point tensors from a folder, whatever it is there; None: as there.

    Raises:
        InputError: the folder lacks files.
    """
    if not is_sharded_checkpoint(path):
        saved = read_checkpoint(path, mmap=True)["state_dict"]
        return {n.removeprefix(prefix): t for n, t in saved.items() if n.startswith(prefix)}
    inside = f"{_MODULE}{prefix}"
    with naming_damage(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        entries = {n: each for n, each in _saved_tensors(path).items() if n.startswith(inside)}
        tensors: dict[str, Any] = {name: _empty(each, dtype) for name, each in entries.items()}
        load(tensors, storage_reader=FileSystemReader(path), no_dist=True)
    return {name.removeprefix(inside): tensor for name, tensor in tensors.items()}


def _empty(entry: TensorStorageMetadata, dtype: torch.dtype | None) -> Tensor:
    own = entry.properties.dtype
    return torch.empty(entry.size, dtype=dtype if dtype and own.is_floating_point else own)


def _saved_tensors(path: Path) -> dict[str, TensorStorageMetadata]:
    entries = FileSystemReader(path).read_metadata().state_dict_metadata
    return {n: each for n, each in entries.items() if isinstance(each, TensorStorageMetadata)}


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn what torch raises over missing, broken or foreign files into one sentence.

    Within, what is read is data: see `data_alone`.
    """
    try:
        with data_alone(path):
            yield
    except ZeroSearchError:
        raise
    except (Exception, CheckpointException) as error:  # of any kind, where bytes are others
        first = next(iter(getattr(error, "failures", {}).values()), (error,))[0]
        if isinstance(first, UnpicklingError) and _REFUSED in str(first):
            raise holding_objects(path, what_was_refused(first)) from error
        raise InputError(
            f"checkpoint {path} is not whole ({first}): resume from an earlier checkpoint of the "
            "same folder, or copy it again"
        ) from error


def what_was_refused(error: UnpicklingError) -> str:
    """What torch would not load, by its name where that is said."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else str(error).partition("\n")[0]


def saved_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the module's tensors in the folder of a sharded checkpoint, by name.

    Raises:
        InputError: the folder lacks files.
    """
    with naming_damage(path):
        entries = _saved_tensors(path)
    return {
        name.removeprefix(_MODULE): tuple(entry.size)
        for name, entry in entries.items()
        if name.startswith(_MODULE)
    }


def saved_state_names(path: Path) -> list[set[str]]:
    """Names of what each optimizer keeps per parameter, in the folder of a sharded checkpoint."""
    with naming_damage(path):
        entries = FileSystemReader(path).read_metadata().state_dict_metadata
    kept: dict[int, set[str]] = {}
    for entry in entries:
        optimizer, _, rest = entry.partition(".")
        if _OPTIMIZER.fullmatch(optimizer):
            names = kept.setdefault(_number(optimizer), set())
            if rest.startswith("state."):
                names.add(rest.rpartition(".")[2])
    return [kept[number] for number in sorted(kept)]


def state_names(state: Mapping[str, Any]) -> set[str]:
    """The same of one optimizer's `state_dict`, by name or by position."""
    return {name for values in state["state"].values() for name in values}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_same_model(saved: Shapes, present: Shapes) -> None:
    """Refuse a checkpoint of another model, in one sentence.

    Args:
        saved: shapes of the tensors in the checkpoint, by name.
        present: of those of the module.

    Raises:
        InputError: names or shapes differ.
    """
    reshaped = [name for name in present if name in saved and saved[name] != present[name]]
    if reshaped:
        name = reshaped[0]
        difference = f"{name} has shape {list(saved[name])} there and {list(present[name])} here"
    elif saved.keys() != present.keys():
        there = [name for name in saved if name not in present]
        here = [name for name in present if name not in saved]
        difference = (
            f"{len(there)} tensors are only there ({', '.join(there[:2]) or 'none'}), "
            f"{len(here)} only here ({', '.join(here[:2]) or 'none'})"
        )
    else:
        return
    raise InputError(
        f"the checkpoint of resume= is of another model: {difference}; resume with the model and "
        "algorithm settings of its run, or start a new run from that run's exported policy"
    )


def check_same_optimizers(saved: Sequence[set[str]], present: Sequence[set[str]]) -> None:
    """Refuse a checkpoint of other optimizers, in one sentence.

    Args:
        saved: names of what each optimizer of the checkpoint keeps per parameter: the policy's,
            then the critic's where there is one.
        present: of what those of the run keep.

    Raises:
        InputError: they differ.
    """
    if list(saved) != list(present):
        there, here = (" and ".join(_listed(names) for names in all_) for all_ in (saved, present))
        raise InputError(
            f"the checkpoint of resume= is of another optimizer, which keeps {there} per "
            f"parameter, and that of this run {here}: resume with the optimizer settings of its "
            "run, or start a new run from that run's exported policy"
        )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def optimizer_by_name(state: dict[str, Any], module: nn.Module, optimizer: Any) -> dict[str, Any]:
    """An optimizer's saved state with the module's parameter names in the place of positions.

    Args:
        state: as `Optimizer.state_dict` returns it.
        module: whose parameters are optimised.
        optimizer: over the same parameters in the same order; they may be some of the module's.
    """
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    names = [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]
    return {
        "state": {names[position]: values for position, values in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[position] for position in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


def _by_position(state: dict[str, Any]) -> dict[str, Any]:
    names = [name for group in state["param_groups"] for name in group["params"]]
    position_of = {name: position for position, name in enumerate(names)}
    return {
        "state": {position_of[name]: values for name, values in state.get("state", {}).items()},
        "param_groups": [
            {**group, "params": [position_of[name] for name in group["params"]]}
            for group in state["param_groups"]
        ],
    }
