"""Tune a simulator or a policy: `zerosearch tune data.files.train=FILE key=value ...`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zerosearch.command_line.arguments import expand_resume
from zerosearch.command_line.command import command
from zerosearch.command_line.keys import COUNT, OF_TRAINING
from zerosearch.command_line.made_for import check_choices, check_experiment
from zerosearch.command_line.optimized import check_optimized, optimized_value
from zerosearch.commands.report import report_sweep
from zerosearch.core.imports import quick_imports
from zerosearch.core.runs import Summary, run_job
from zerosearch.data.availability import check_data

if TYPE_CHECKING:
    from omegaconf import DictConfig


def tune(cfg: DictConfig, summary: Summary) -> None:
    """Validate, tune, validate again; notes the final metrics and the status."""
    if summary.keep_complete(cfg.steps):
        return
    with quick_imports():
        from zerosearch.assembly import assemble_tuning, prepare
        from zerosearch.callbacks.console import say_what_runs

    checkpoint = prepare(cfg, summary)
    run = assemble_tuning(cfg)
    say_what_runs(run.trainer, run.module, run.data.examples_per_step, summary)
    run.read_examples()
    run.log_settings(cfg)
    with run.failing_in_sight(summary.facts):
        run.fit_and_evaluate(checkpoint, test=cfg.test)
    summary.facts |= run.final_metrics()
    summary.facts["steps"] = run.module.policy_step
    run.show_columns({**summary.facts, "status": run.status})
    summary.facts["status"] = run.status


@command(
    keys=OF_TRAINING | {"steps": COUNT},
    checks=[check_optimized, check_choices, check_data],
    expand=[partial(check_experiment, command="tune"), partial(expand_resume, command="tune")],
    sweeps=True,
    after_sweep=report_sweep,
)
def main(cfg: DictConfig) -> float | None:
    """Run one job of Hydra; returns what a sweep goes by."""
    return optimized_value(cfg, run_job(cfg, tune))
