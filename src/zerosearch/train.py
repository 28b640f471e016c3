"""Train a policy to search: `python -m zerosearch.train experiment=NAME key=value ...`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra

from zerosearch.runs import PROJECT_ROOT, Summary, expand_resume, find_checkpoint, link_latest

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)
os.environ.setdefault("PROJECT_ROOT", str(PROJECT_ROOT))


def train(cfg: DictConfig, summary: Summary) -> dict[str, float]:
    """Evaluate, train, evaluate again; returns the final metrics."""
    from lightning.pytorch import seed_everything

    from zerosearch.assembly import assemble
    from zerosearch.training.preflight import check_accelerator, check_run

    check_accelerator(cfg.trainer.accelerator)
    seed_everything(cfg.seed, workers=True, verbose=False)
    checkpoint = find_checkpoint(cfg.resume)
    run = assemble(cfg)
    check_run(run.module)
    run.data.setup("fit")  # a bad row shows before anything is evaluated
    if cfg.test and checkpoint is None:
        run.evaluate("start")
    if run.status == "completed":
        run.fit(checkpoint)
    if cfg.test and run.status == "completed":
        run.evaluate("test")
    summary.facts["status"] = run.status
    return run.final_metrics()


@hydra.main(version_base="1.3", config_path=str(PROJECT_ROOT / "configs"), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Run one job of Hydra; returns what a hyper-parameter search would maximise."""
    from zerosearch.assembly import exit_code, report_error

    folder = Path(cfg.paths.output_dir)
    link_latest(folder, Path(cfg.paths.log_dir) / cfg.task_name)
    summary = Summary(folder, seed=cfg.seed, tags=list(cfg.tags))
    try:
        metrics = train(cfg, summary)
        summary.facts |= metrics
        log.info(summary.headline())
    except Exception as error:
        summary.facts["error"] = report_error(error)
        raise SystemExit(1) from error
    finally:
        summary.write()
    if code := exit_code(summary.facts["status"]):
        raise SystemExit(code)
    return metrics.get("test/f1")


if __name__ == "__main__":
    try:
        sys.argv[1:] = expand_resume(sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
    main()
