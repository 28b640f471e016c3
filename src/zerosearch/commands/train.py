"""Train a policy: `zerosearch train experiment=NAME key=value ...`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zerosearch.command_line.arguments import expand_resume, expand_simulator
from zerosearch.command_line.command import command
from zerosearch.command_line.keys import COUNT, OF_TRAINING
from zerosearch.command_line.made_for import check_choices, check_experiment
from zerosearch.command_line.optimized import check_optimized, optimized_value
from zerosearch.commands.report import report_sweep
from zerosearch.core.imports import quick_imports
from zerosearch.core.runs import Summary, run_job
from zerosearch.data.availability import check_data
from zerosearch.simulator.checks import check_simulator

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(cfg: DictConfig, summary: Summary) -> None:
    """Evaluate, train, evaluate again; notes the final metrics and the status."""
    from zerosearch.simulator.cost import say_plan

    if summary.keep_complete(cfg.policy_steps):
        return
    say_plan(cfg)
    with quick_imports():
        from zerosearch.assembly import assemble, prepare
        from zerosearch.callbacks.console import say_what_runs
        from zerosearch.data.loaders import check_shared
        from zerosearch.serving.launch import launched
        from zerosearch.simulator.engine import answered_by
        from zerosearch.training.preflight import check_run

    checkpoint = prepare(cfg, summary)
    with launched(cfg, summary.path.parent):
        run = assemble(cfg)
        say_what_runs(run.trainer, run.module, cfg.questions_per_step, summary)
        check_shared(cfg.questions_per_step, run.trainer.num_devices * run.trainer.num_nodes)
        check_run(run.module)
        run.data.setup("fit")  # a bad row shows before anything is evaluated
        run.log_settings(cfg)
        with run.failing_in_sight(summary.facts):
            run.fit_and_evaluate(checkpoint, test=cfg.test)
            models = {*run.module.models_before, *answered_by(run.module.search)}
            metrics = run.final_metrics()
            metrics |= run.module.headline(metrics)
            summary.facts |= metrics | {"simulator_models": sorted(models)}
            summary.facts["steps"] = run.module.policy_step
            run.check_searches()
    run.show_columns({**summary.facts, "status": run.status})
    summary.facts["status"] = run.status


@command(
    keys=OF_TRAINING | {"policy_steps": COUNT, "questions_per_step": COUNT},
    checks=[check_optimized, check_choices, check_simulator, check_data],
    expand=[partial(check_experiment, command="train"), expand_resume, expand_simulator],
    sweeps=True,
    after_sweep=report_sweep,
)
def main(cfg: DictConfig) -> float | None:
    """Run one job of Hydra; returns what a sweep goes by."""
    return optimized_value(cfg, run_job(cfg, train))
