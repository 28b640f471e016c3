"""How far a long work is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from zerosearch.core.text import duration

LINE_S = 30.0  # at least, between two lines
_ESTIMATED_FROM = 0.05  # share of the work that is done before the time that is left is said

log = logging.getLogger(__name__)


@contextmanager
def progress_bar(what: str, total: int, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show how far a long work is; yields what is told of each step.

    Args:
        what: is counted.
        total: of these.
        done: already.
    """
    with terminal_bar(what, total, done=done) as advance:
        yield advance or _Lines(what, total, done).advance


@contextmanager
def terminal_bar(what: str, total: int, *, done: int = 0) -> Iterator[Callable[[int], None] | None]:
    """As `progress_bar`, on a terminal alone; yields None elsewhere.

    It is gone when the work ends. Logs and prints go above it meanwhile.
    """
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, refresh_per_second=4
    ) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


class _Lines:
    """Says how far a work is, every `LINE_S` seconds of it."""

    def __init__(self, what: str, total: int, done: int) -> None:
        self.what, self.total, self.done = what, total, done
        self.done_before = done
        self.began = self.told = time.monotonic()

    def advance(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        now = time.monotonic()
        if now - self.told < LINE_S or self.done >= self.total:
            return
        self.told = now
        new = self.done - self.done_before
        rate = new / (now - self.began)
        # what comes in batches says nothing of their pace with its first one
        told = new >= _ESTIMATED_FROM * (self.total - self.done_before)
        left = f", {duration((self.total - self.done) / rate)} left" if told else ""
        log.info("%s: %d of %d%s", self.what, self.done, self.total, left)
