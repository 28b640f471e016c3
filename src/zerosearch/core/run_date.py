"""The moment that a run's prompts take for now, where a chat template prints today's date.

Fixed when the run begins and kept in its checkpoints, or beside its rows: a run that goes on the
next day, or on a machine in another time zone, reads the prompts that it read before.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.core.files import remove_leftovers_of, replacing

FILE = "prompt_date.txt"  # of a folder whose work goes on

_fixed: list[datetime] = []  # of this process: none before anybody asks, then one


def run_date() -> datetime:
    """The moment, local time; by default that of the first call."""
    if not _fixed:
        _fixed[:] = [datetime.now()]
    return _fixed[0]


def set_run_date(saved: Any, where: str = "the date of the checkpoint of resume=") -> None:
    """Begin a run.

    Args:
        saved: in ISO format, of what it goes on from; None: now.
        where: it stands, for messages.

    Raises:
        InputError: it is none.
    """
    _fixed[:] = [datetime.now() if saved is None else read_date(saved, where)]


def read_date(saved: Any, where: str) -> datetime:
    """A moment of a checkpoint or of a folder.

    Args:
        saved: in ISO format.
        where: it stands, for messages.

    Raises:
        InputError: it is none.
    """
    try:
        return datetime.fromisoformat(saved)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where} is {saved!r:.80}: it should be as 2026-11-28T09:30:00; the file was changed"
        ) from error


def keep_run_date(folder: Path) -> None:
    """Begin work whose rows are kept in a folder, or go on with it under the date it began with.

    Raises:
        InputError: what is written there is no date.
    """
    path = folder / FILE
    remove_leftovers_of(path)
    if path.is_file():
        written = path.read_text(encoding="utf-8", errors="replace")
        set_run_date(written.strip(), f"{path}: the date")
        return
    set_run_date(None)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(f"{run_date().isoformat()}\n".encode())
