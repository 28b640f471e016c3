"""TensorBoard's files of a run that goes on: what came after its checkpoint is taken back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from zerosearch.callbacks.tensorboard_logger import CurveLogger

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


def held_back(loggers: Sequence[Logger]) -> list[dict[str, Any]]:
    """What the loggers know that is in no file yet."""
    return [logger.state() for logger in loggers if isinstance(logger, CurveLogger)]


def cut_back(
    loggers: Sequence[Logger], sizes: Mapping[str, int], held: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Bring event files to the sizes that they had at a checkpoint; later files are removed.

    Args:
        loggers: of the run; they go on in files of their own.
        sizes: as `event_file_sizes` gave them then; empty: the run starts from the beginning.
        held: as `held_back` gave it then; it is forgotten where none of these files is here, in the
            folder of another run.
    """
    states = iter(held)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and (paths := _event_files(logger)):
            logger.experiment.close()  # its next event opens a new file
            folder = Path(logger.log_dir)
            here = any(_name(path, folder) in sizes for path in paths)
            if isinstance(logger, CurveLogger):
                logger.restore(next(states, {}) if here else {})
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
