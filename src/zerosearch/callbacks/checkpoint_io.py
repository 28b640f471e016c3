"""Checkpoint files that are whole or absent, and that say so when they are neither."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.policy.checkpoints import (
    is_sharded_checkpoint,
    naming_damage,
    read_checkpoint,
)

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Single-file checkpoints on a local or mounted disk.

    Lightning's own plugin serialises into memory first and does not flush to the disk; this one
    writes straight to a hidden file beside the target, flushes and renames it.

    Sharded checkpoints (a folder per checkpoint) are not written through a checkpoint plugin;
    `PolicyCheckpoint` makes those atomic. They are read here when a run that is not sharded goes
    on from one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint`, or raise and leave every earlier file as it was.

        Raises:
            FileError: the file could not be written; names the path, the free space and the remedy.
            TypeError: `storage_options` is given; a local file has none.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r}: a checkpoint file takes none")
        with replacing(Path(path), intact="earlier checkpoints are intact") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch closes its archive after a failed write, fails again, and hides the cause
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint after checking every byte of it.

        Args:
            path: file to read, or the folder of a sharded checkpoint.
            map_location: as in `torch.load`.
            weights_only: whatever it is, tensors and plain containers alone are accepted.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: the file is not a whole checkpoint, or holds other objects.
        """
        path = Path(path)
        if is_sharded_checkpoint(path):
            return read_checkpoint(path)
        if not path.exists():
            raise FileNotFoundError(f"checkpoint {path} is not there")
        _check_whole(path)
        with naming_damage(path):
            return super().load_checkpoint(path, cast(Any, map_location), True)


def _check_whole(path: Path) -> None:
    """Raise an InputError unless `path` is a checkpoint file whose checksums all hold."""
    remedy = "resume from an earlier checkpoint of the same folder, or copy the file again"
    if path.is_dir():
        raise InputError(
            f"checkpoint {path} is a folder without meta.pt, so not a whole sharded checkpoint: "
            f"{remedy}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # of many kinds, where bytes are others
        raise InputError(
            f"checkpoint {path} is cut short or not a checkpoint ({error}): {remedy}"
        ) from error
    if broken is not None:
        raise InputError(f"checkpoint {path} is corrupt (checksum of {broken!r}): {remedy}")
