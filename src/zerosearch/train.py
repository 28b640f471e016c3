"""Train a model: `python -m zerosearch.train experiment=NAME key=value ...`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import hydra

from zerosearch.data.places import check_places
from zerosearch.runs import (
    PROJECT_ROOT,
    Summary,
    check_early,
    expand_resume,
    expand_simulator,
    find_checkpoint,
    run_job,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

os.environ.setdefault("PROJECT_ROOT", str(PROJECT_ROOT))


def train_policy(cfg: DictConfig, summary: Summary) -> None:
    """Evaluate, train, evaluate again; notes the final metrics and the status."""
    from lightning.pytorch import seed_everything

    from zerosearch.assembly import assemble
    from zerosearch.data.loaders import check_shared
    from zerosearch.policy.memory import check_memory
    from zerosearch.simulator.launch import launched
    from zerosearch.training.preflight import check_accelerator, check_run

    check_accelerator(cfg.trainer.accelerator)
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
    summary.facts |= run.final_metrics()
    run.check_searches()
    summary.facts["status"] = run.status


def tune_simulator(cfg: DictConfig, summary: Summary) -> None:
    """Validate, tune, validate again; notes the final metrics and the status."""
    from lightning.pytorch import seed_everything

    from zerosearch.assembly import assemble_tuning
    from zerosearch.policy.memory import check_memory
    from zerosearch.training.preflight import check_accelerator

    check_accelerator(cfg.trainer.accelerator)
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


@hydra.main(version_base="1.3", config_path=str(PROJECT_ROOT / "configs"), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Run one job of Hydra; returns what a hyper-parameter search would maximise."""
    check_early(cfg, check_places)
    return run_job(cfg, hydra.utils.get_method(cfg.job)).get("test/f1")


if __name__ == "__main__":
    try:
        sys.argv[1:] = expand_simulator(expand_resume(sys.argv[1:]))
    except ValueError as error:
        sys.exit(str(error))
    main()
