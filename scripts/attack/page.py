"""The table of docs/reliability.md."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from scripts.attack.tally import Tally

BEGIN, END = "<!-- of make attack -->\n", "<!-- end of it -->\n"
COLUMNS = ("attack", "tried", "survived", "lost", "code run", "most memory, MiB", "seconds")
MOST_MIB = 1024  # that an attack may take above the program at rest


def has_failed(tallies: Sequence[Tally]) -> bool:
    """Whether anything was lost or run, or took too much memory."""
    return any(each.lost or each.ran or each.peak_mib > MOST_MIB for each in tallies)


def shown(tally: Tally) -> str:
    """One row."""
    counts = (tally.tried, tally.survived, len(tally.lost), tally.ran)
    cells = [tally.what, *(f"{each:,}" for each in (*counts, round(tally.peak_mib)))]
    return f"| {' | '.join([*cells, f'{tally.seconds:,.0f}'])} |"


def table(tallies: Sequence[Tally]) -> str:
    """All rows, with what ran where and when below them."""
    heading = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    rows = "".join(f"{shown(each)}\n" for each in tallies)
    seconds = sum(each.seconds for each in tallies)
    cores = len(os.sched_getaffinity(0))
    said = f"{datetime.date.today():%Y-%m-%d}, commit {_commit()}, {_counted(cores)}"
    return f"{heading}{rows}\n`make attack`, {said}, {seconds / 60:.0f} minutes.\n"


def write(page: Path, tallies: Sequence[Tally]) -> None:
    """Put the table in the place of the one that the page has."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has no lines {BEGIN.strip()} and {END.strip()}")
    page.write_text(before + begin + table(tallies) + end + after, encoding="utf-8")


def _counted(cores: int) -> str:
    return f"{cores} core{'s' if cores > 1 else ''}"


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return re.sub(r"\s", "", said)
