"""Train a model: `python -m zerosearch.commands.train experiment=NAME key=value ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hydra

from zerosearch.command_line.arguments import expand_resume, expand_simulator
from zerosearch.command_line.command import (
    COUNT,
    COUNT_OR_NULL,
    FLAG,
    MADE_FOR,
    PLACE,
    SEED,
    TEXT,
    WORDS,
    command,
)
from zerosearch.command_line.made_for import check_choices
from zerosearch.core.runs import Summary, find_checkpoint, run_job
from zerosearch.data.availability import check_data
from zerosearch.simulator.chosen import check_simulator

if TYPE_CHECKING:
    from omegaconf import DictConfig

KEYS = {
    "policy_steps": COUNT,
    "questions_per_step": COUNT,
    "steps": COUNT,
    "seed": SEED,
    "threads": COUNT_OR_NULL,
    "tf32": FLAG,
    "test": FLAG,
    "resume": PLACE,
    "tags": WORDS,
    "made_for": MADE_FOR,
    "job": TEXT,
    "task_name": TEXT,
}

COMPONENTS = ("data", "module", "callbacks", "logger", "trainer")


def train_policy(cfg: DictConfig, summary: Summary) -> None:
    """Evaluate, train, evaluate again; notes the final metrics and the status."""
    from zerosearch.simulator.cost import say_plan

    say_plan(cfg)
    from lightning.pytorch import seed_everything

    from zerosearch.assembly import assemble
    from zerosearch.core.nodes import check_nodes
    from zerosearch.data.loaders import check_shared
    from zerosearch.planning.reading import check_memory
    from zerosearch.serving.launch import launched
    from zerosearch.simulator.engine import answered_by
    from zerosearch.training.preflight import check_accelerator, check_run
    from zerosearch.training.trainer_settings import check_precision

    check_nodes(cfg, *COMPONENTS)
    check_accelerator(cfg.trainer.accelerator)
    check_precision(cfg.trainer.get("precision"))
    check_memory(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    checkpoint = find_checkpoint(cfg.resume, summary.path.parent)
    with launched(cfg, summary.path.parent):
        run = assemble(cfg)
        check_shared(cfg.questions_per_step, run.trainer.num_devices * run.trainer.num_nodes)
        check_run(run.module)
        run.data.setup("fit")  # a bad row shows before anything is evaluated
        if cfg.test and checkpoint is None:
            run.evaluate("start")
            run.check_searches()
        if run.status == "completed":
            run.fit(checkpoint)
        if cfg.test and run.status == "completed":
            run.evaluate("test")
    summary.facts |= run.final_metrics() | {"simulator_models": answered_by(run.module.search)}
    run.check_searches()
    summary.facts["status"] = run.status


def tune_simulator(cfg: DictConfig, summary: Summary) -> None:
    """Validate, tune, validate again; notes the final metrics and the status."""
    from lightning.pytorch import seed_everything

    from zerosearch.assembly import assemble_tuning
    from zerosearch.core.nodes import check_nodes
    from zerosearch.planning.reading import check_memory
    from zerosearch.training.preflight import check_accelerator
    from zerosearch.training.trainer_settings import check_precision

    check_nodes(cfg, *COMPONENTS)
    check_accelerator(cfg.trainer.accelerator)
    check_precision(cfg.trainer.get("precision"))
    check_memory(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    checkpoint = find_checkpoint(cfg.resume, summary.path.parent)
    run = assemble_tuning(cfg)
    run.read_examples()
    if cfg.test and checkpoint is None:
        run.evaluate("start")
    if run.status == "completed":
        run.fit(checkpoint)
    if cfg.test and run.status == "completed":
        run.evaluate("test")
    summary.facts |= run.final_metrics()
    summary.facts["status"] = run.status


@command(
    "train",
    keys=KEYS,
    checks=[check_choices, check_simulator, check_data],
    expand=[expand_resume, expand_simulator],
)
def main(cfg: DictConfig) -> float | None:
    """Run one job of Hydra; returns what a hyper-parameter search would maximise."""
    return run_job(cfg, hydra.utils.get_method(cfg.job)).get("test/f1")


if __name__ == "__main__":
    main()
