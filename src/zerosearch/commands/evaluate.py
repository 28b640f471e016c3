"""Fill a table: `zerosearch evaluate checkpoint=RUN benchmark=all methods=all`."""

from __future__ import annotations

import asyncio
import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig

from zerosearch.command_line.arguments import expand_resume, expand_simulator, keep_override
from zerosearch.command_line.chosen_policy import choose_policy
from zerosearch.command_line.command import command
from zerosearch.command_line.keys import (
    COUNT,
    COUNT_OR_ALL,
    FLAG,
    MADE_FOR,
    NOT_NEGATIVE,
    PLACE,
    SEED,
    SHARE,
    WORDS,
)
from zerosearch.core.endings import sigterm_as_ctrl_c
from zerosearch.core.imports import quick_imports
from zerosearch.core.run_date import keep_run_date
from zerosearch.core.runs import Summary, link_latest, run_job
from zerosearch.data.availability import check_data
from zerosearch.simulator.checks import check_simulator

if TYPE_CHECKING:
    from omegaconf import DictConfig

KEYS = {
    "limit": COUNT_OR_ALL,
    "block": COUNT,
    "max_failed_share": SHARE,
    "temperature": NOT_NEGATIVE,
    "allow_other_episode": FLAG,
    "seed": SEED,
    "checkpoint": PLACE,
    "resume": PLACE,
    "benchmark_file": PLACE,
    "tags": WORDS,
    "made_for": MADE_FOR,
}

COMPONENTS = ("methods", "engines", "benchmark")


def evaluate(cfg: DictConfig, summary: Summary) -> None:
    """Answer the questions, write and show the tables; notes the metrics and the status."""
    folder = summary.path.parent
    overrides = list(HydraConfig.get().overrides.task)
    choose_policy(cfg, overrides)
    if cfg.checkpoint is not None:
        keep_override(folder, "checkpoint", cfg.checkpoint)  # what latest is may have changed
        summary.facts["checkpoint"] = cfg.checkpoint

    with quick_imports():
        from zerosearch.core.nodes import check_nodes
        from zerosearch.evaluation.table_files import show, write_tables, write_times
        from zerosearch.evaluation.trained_policy import use_checkpoint
        from zerosearch.serving.launch import launched

    prompts = any(method.get("prompted") for method in cfg.methods.values())
    check_nodes(cfg, *COMPONENTS, *(["prompted"] if prompts else []))
    use_checkpoint(cfg, overrides, folder)
    keep_run_date(folder)
    with launched(cfg, folder):
        run = table_run(cfg, folder)
        results = asyncio.run(run.run())
    write_tables(folder, results, cfg.paper_rows)
    write_times(folder, run.times)
    show(results, run.times)
    for (row, benchmark), metrics in results.cells.items():
        summary.facts |= {f"test/{row}/{benchmark}/{k}": v for k, v in metrics.items()}
    first = next(iter(results.cells.values()))
    summary.facts |= {f"test/{name}": first[name] for name in ("f1", "em", "cover_em")}
    summary.facts["status"] = "completed"


def table_run(cfg: DictConfig, folder: Path) -> Any:
    """The objects of a table; no model is loaded yet."""
    from omegaconf import OmegaConf

    from zerosearch.evaluation.table_run import TableRun

    def made(node: Any) -> Any:
        return hydra.utils.instantiate(node, _convert_="all")

    engines = {
        name: dataclasses.replace(
            made(node), settings=identity(OmegaConf.to_container(node.search, resolve=True))
        )
        for name, node in cfg.engines.items()
    }
    return TableRun(
        methods=made(cfg.methods),
        engines=engines,
        benchmarks=made(cfg.benchmark),
        client=lambda: made(cfg.prompted),
        block=cfg.block,
        max_failed_share=cfg.max_failed_share,
        seed=cfg.seed,
        folder=folder,
        on_begin=partial(link_latest, folder, Path(cfg.paths.log_dir) / cfg.task_name),
    )


def identity(node: Any, *free: str) -> Any:
    """Settings without the addresses of servers, which may move before a run is resumed.

    Args:
        node: plain values.
        free: names of further settings that decide nothing of what is found.
    """
    if isinstance(node, dict):
        left = {"endpoints", "url", "cache", "cache_folder", *free}
        return {name: identity(value, *free) for name, value in node.items() if name not in left}
    return node


@command(
    keys=KEYS,
    checks=[check_simulator, check_data],
    expand=[partial(expand_resume, command="evaluate"), expand_simulator],
    sweeps=True,
)
def main(cfg: DictConfig) -> None:
    """Run one job of Hydra."""
    with sigterm_as_ctrl_c():
        run_job(cfg, evaluate)
