"""Evaluation metrics as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

# heading -> metric of one engine, and how it is shown
_COLUMNS = {
    "EM": ("em", ".3f"),
    "cover EM": ("cover_em", ".3f"),
    "F1": ("f1", ".3f"),
    "searches per question": ("rollout/searches", ".2f"),
    "latency, mean s": ("search/latency_s", ".4f"),
    "p95 s": ("search/latency_s_p95", ".4f"),
    "failed": ("search/failed", ".1%"),
}


def engine_table(engines: Sequence[str], metrics: Mapping[str, float]) -> Table:
    """One row per engine.

    Args:
        engines: names under which the metrics stand.
        metrics: `test/<engine>/<metric>` -> value; a metric that is missing is shown as a dash.
    """
    table = Table("engine", *_COLUMNS)
    for engine in engines:
        cells = []
        for name, form in _COLUMNS.values():
            value = metrics.get(f"test/{engine}/{name}")
            cells.append("-" if value is None else format(value, form))
        table.add_row(engine, *cells)
    return table


def print_engines(engines: Sequence[str], metrics: Mapping[str, float]) -> None:
    """Print `engine_table`; on rank 0, where the metrics are."""
    if metrics:
        Console().print(engine_table(engines, metrics))
