"""The moment that a run's prompts take for now, where a chat template prints today's date.

Fixed when the run begins and kept in its checkpoints, or beside its rows: a run that goes on the
next day, or on a machine in another time zone, reads the prompts that it read before.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing

FILE = "prompt_date.txt"  # of a folder whose work goes on

_fixed: list[datetime] = []  # of this process: none before anybody asks, then one


def run_date() -> datetime:
    """The moment, local time; by default that of the first call."""
    if not _fixed:
        _fixed[:] = [datetime.now()]
    return _fixed[0]


def set_run_date(saved: str | None) -> None:
    """Begin a run.

    Args:
        saved: in ISO format, of a checkpoint that it goes on from; None: now.
    """
    _fixed[:] = [datetime.now() if saved is None else datetime.fromisoformat(saved)]


def keep_run_date(folder: Path) -> None:
    """Begin work whose rows are kept in a folder, or go on with it under the date it began with.

    Raises:
        InputError: what is written there is no date.
    """
    path = folder / FILE
    if path.is_file():
        try:
            set_run_date(path.read_text(encoding="utf-8").strip())
        except ValueError as error:
            raise InputError(f"{path}: no date in ISO format ({error}); remove the file") from error
        return
    set_run_date(None)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(f"{run_date().isoformat()}\n".encode())
