"""Answer the test questions: `python -m zerosearch.evaluate model.path=FOLDER evaluation=NAME`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import hydra

from zerosearch.runs import PROJECT_ROOT, Summary, expand_simulator, run_job

if TYPE_CHECKING:
    from omegaconf import DictConfig

os.environ.setdefault("PROJECT_ROOT", str(PROJECT_ROOT))


def evaluate(cfg: DictConfig, summary: Summary) -> None:
    """Let the policy answer with every engine of `evaluation`; notes the metrics and the status."""
    from lightning.pytorch import seed_everything

    from zerosearch.assembly import assemble
    from zerosearch.evaluation.tables import print_engines
    from zerosearch.simulator.launch import launched
    from zerosearch.training.preflight import check_accelerator, check_episode, check_run

    check_accelerator(cfg.trainer.accelerator)
    seed_everything(cfg.seed, workers=True, verbose=False)
    with launched(cfg, summary.path.parent):
        run = assemble(cfg)
        check_episode(run.module)
        check_run(run.module)
        run.evaluate("test")
    print_engines(list(run.module.evaluations), run.module.evaluation_metrics)
    summary.facts |= run.final_metrics()
    run.check_searches()
    summary.facts["status"] = run.status


@hydra.main(version_base="1.3", config_path=str(PROJECT_ROOT / "configs"), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Run one job of Hydra."""
    run_job(cfg, evaluate)


if __name__ == "__main__":
    sys.argv[1:] = expand_simulator(sys.argv[1:])
    main()
