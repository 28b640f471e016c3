"""The moment that a run's prompts take for now, where a chat template prints today's date.

Fixed when the run begins and kept in its checkpoints: a run that goes on the next day, or on a
machine in another time zone, reads the prompts that it read before.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from zerosearch.core.errors import InputError

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

    Raises:
        InputError: it is none.
    """
    where = "the date of the checkpoint of resume="
    _fixed[:] = [datetime.now() if saved is None else read_date(saved, where)]


def read_date(saved: Any, where: str) -> datetime:
    """A moment of a checkpoint.

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
