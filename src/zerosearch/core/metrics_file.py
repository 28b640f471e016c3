"""`metrics.csv` of a run folder: one row per policy step, as text."""

from __future__ import annotations

import csv
from pathlib import Path

METRICS_FILE = "metrics.csv"
STEP = "step"  # policy steps completed before this one
Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    """The rows of a `metrics.csv`, without one that a kill cut short."""
    with path.open(newline="", encoding="utf-8") as file:
        whole = [line for line in file if line.endswith("\n")]
    return list(csv.DictReader(whole))
