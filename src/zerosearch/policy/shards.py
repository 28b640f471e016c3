"""Keeps torch from running what a folder of shards may hold.

torch unpickles the `.metadata` of such a folder, and every value in it that is no tensor, without
any limit, and offers no argument against it.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from enum import EnumType
from pathlib import Path
from typing import Any

import torch

from zerosearch.core.errors import InputError

_METADATA = ".metadata"  # as torch names it
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's: no `torch.load` makes other objects
_OF_METADATA = {
    "collections": ("OrderedDict",),
    "pathlib": ("Path", "PosixPath", "PurePosixPath"),
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
}


@contextmanager
def data_alone(path: Path) -> Iterator[None]:
    """Within, torch can read a checkpoint and makes nothing of it but tensors and plain values.

    Args:
        path: of the checkpoint, a folder of shards or a file.

    Raises:
        InputError: the metadata of the shards hold something else.
        UnpicklingError: they are damaged.
    """
    if (path / _METADATA).is_file():
        with (path / _METADATA).open("rb") as file:
            _Metadata(file, path).load()
    earlier = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if earlier is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = earlier


class _Metadata(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _OF_METADATA.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return self._member
        raise holding_objects(self._path, f"{module}.{name}")

    def _member(self, owner: Any, name: str) -> Any:
        """Of an enumeration, which Python 3.11.0 to 3.11.3 pickles as an attribute of its class."""
        if isinstance(owner, EnumType) and name in owner.__members__:
            return owner[name]
        raise holding_objects(self._path, f"builtins.getattr of {name!r}")


def holding_objects(path: Path, what: object) -> InputError:
    """That a checkpoint may hold data alone, and does not.

    Args:
        path: of the checkpoint.
        what: it holds, or torch says of it.
    """
    return InputError(
        f"checkpoint {path} holds objects other than tensors and plain values ({what}), which "
        "could run any program, and is not loaded: no checkpoint of this project holds any"
    )
