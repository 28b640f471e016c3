"""Measure a simulator before a run is spent on it.

`python -m zerosearch.simulator.fidelity simulator=prompted_7b data.files=[questions.jsonl]`
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig

from zerosearch.endings import ending_in_words
from zerosearch.runs import PROJECT_ROOT, expand_simulator, link_latest

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)
os.environ.setdefault("PROJECT_ROOT", str(PROJECT_ROOT))


def measure(cfg: DictConfig, folder: Path) -> list[str]:
    """Ask, report and write into `folder`; returns the warnings."""
    from zerosearch.simulator.fidelity_report import (
        ask_all,
        print_summary,
        summarize,
        warnings_of,
        write_report,
    )
    from zerosearch.simulator.launch import launched

    if "chat" not in cfg.simulator and HydraConfig.get().runtime.choices["search"] == "simulated":
        raise ValueError(
            "search=simulated asks a language model, and the simulator chosen is scripted: add "
            "search=scripted"
        )
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


@hydra.main(version_base="1.3", config_path=str(PROJECT_ROOT / "configs"), config_name="fidelity")
def main(cfg: DictConfig) -> None:
    """Measure one simulator."""
    folder = Path(cfg.paths.output_dir)
    with ending_in_words():
        warnings = measure(cfg, folder)
    if warnings and cfg.strict:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.argv[1:] = expand_simulator(sys.argv[1:])
    main()
