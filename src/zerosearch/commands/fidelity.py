"""Measure a simulator before a run is spent on it.

`zerosearch fidelity simulator=prompted_7b data.files=[questions.jsonl]`
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import hydra

from zerosearch.command_line.arguments import expand_simulator
from zerosearch.command_line.command import command
from zerosearch.command_line.keys import COUNT, FLAG, SECONDS, SEED
from zerosearch.core.endings import ending_in_words
from zerosearch.core.runs import link_latest
from zerosearch.data.availability import check_data
from zerosearch.simulator.checks import check_simulator

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)
KEYS = {
    "seed": SEED,
    "top_k": COUNT,
    "timeout_s": SECONDS,
    "concurrency": COUNT,
    "strict": FLAG,
}

COMPONENTS = ("questions", "search")


def measure(cfg: DictConfig, folder: Path) -> list[str]:
    """Ask, report and write into `folder`; returns the warnings."""
    from zerosearch.core.nodes import check_nodes
    from zerosearch.serving.launch import launched
    from zerosearch.simulator.measurement import ask_all, summarize, warnings_of
    from zerosearch.simulator.measurement_report import print_summary, write_report

    check_nodes(cfg, *COMPONENTS)
    questions = hydra.utils.instantiate(cfg.questions, _convert_="all")
    with launched(cfg, folder):
        searching = ask_all(
            hydra.utils.instantiate(cfg.search, _convert_="all"),
            questions,
            top_k=cfg.top_k,
            timeout_s=cfg.timeout_s,
            concurrency=cfg.concurrency,
            seed=cfg.seed,
        )
        link_latest(folder, Path(cfg.paths.log_dir) / cfg.task_name)
        asked = asyncio.run(searching)
    summary = summarize(asked)
    warnings = warnings_of(summary, cfg.thresholds)
    print_summary(summary, warnings, asked)
    write_report(folder, {**summary, "warnings": warnings}, asked)
    log.info("written: %s/fidelity.json and searches.csv", folder)
    return warnings


@command(
    keys=KEYS,
    checks=[check_simulator, check_data],
    expand=[expand_simulator],
    sweeps=True,
)
def main(cfg: DictConfig) -> None:
    """Measure one simulator."""
    folder = Path(cfg.paths.output_dir)
    with ending_in_words():
        warnings = measure(cfg, folder)
    if warnings and cfg.strict:
        raise SystemExit(1)
