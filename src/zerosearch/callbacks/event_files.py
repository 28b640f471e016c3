"""TensorBoard's files of a run that goes on: what came after its checkpoint is taken back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger

FILES = "events.out.tfevents.*"


def event_file_sizes(loggers: Sequence[Logger]) -> dict[str, int]:
    """Bytes of every event file, by its path below its logger's folder; all is written."""
    sizes: dict[str, int] = {}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
            folder = Path(logger.log_dir)
            sizes |= {_name(path, folder): path.stat().st_size for path in _event_files(logger)}
    return sizes


def cut_back(loggers: Sequence[Logger], sizes: dict[str, int]) -> None:
    """Bring event files to the sizes that they had at a checkpoint; later files are removed.

    Args:
        loggers: of the run; they go on in files of their own.
        sizes: as `event_file_sizes` gave them then; empty: the run starts from the beginning.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and (paths := _event_files(logger)):
            logger.experiment.close()  # its next event opens a new file
            folder = Path(logger.log_dir)
            for path in paths:
                size = sizes.get(_name(path, folder))
                if size is None:
                    path.unlink()
                elif size < path.stat().st_size:
                    os.truncate(path, size)


def _event_files(logger: TensorBoardLogger) -> list[Path]:
    return [*Path(logger.log_dir).rglob(FILES)]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
