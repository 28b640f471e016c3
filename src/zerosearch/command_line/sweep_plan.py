"""What is left to do of a sweep: decided for all its jobs before the first of them is started."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from zerosearch.command_line.chosen_policy import choose_policy
from zerosearch.command_line.optimized import check_optimized
from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.core.nodes import leaves
from zerosearch.core.runs import JOURNAL, LAST_CHECKPOINT, RUNNING, is_checkpoint
from zerosearch.core.sweep_folder import (
    COMMAND,
    COMPLETED,
    FAILED,
    INTERRUPTED,
    SweepJob,
    plan_jobs,
    read_job,
)
from zerosearch.core.sweep_names import job_name, names_apart, sweeper_params, swept_keys

Compose = Callable[[DictConfig, list[str]], DictConfig]

# settings that may differ; the policy of an evaluation is compared as it was settled
_OF_THE_MACHINE = ("tags", "threads", "paths.", "checkpoint")
_SHOWN = 3  # settings that do

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedJob:
    """A job of a sweep that is about to be started, or need not be.

    Attributes:
        number: in the sweep.
        cfg: as it is composed, with Hydra's own settings.
        found: what its folder says of it.
    """

    number: int
    cfg: DictConfig
    found: SweepJob

    @property
    def title(self) -> str:
        """What it differs in from the others."""
        return ", ".join(f"{k}={v}" for k, v in self.found.differs.items()) or "nothing swept"

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to be done."""
        return self.found.state == COMPLETED

    @property
    def is_begun(self) -> bool:
        """Whether there is something in its folder to go on from."""
        folder = self.found.folder
        return is_checkpoint(folder / LAST_CHECKPOINT) or (folder / JOURNAL).is_dir()

    def to_do(self) -> str:
        """What is to be done, in words."""
        found, place = self.found, "the last checkpoint" if self.is_begun else "the beginning"
        if self.is_done:
            return f"{found.said or COMPLETED}: kept"
        if found.state == INTERRUPTED:
            return f"goes on from {place} ({found.said})"
        if found.state == FAILED:
            return f"is tried again from {place} ({found.said})"
        return f"goes on from {place} (it has no summary.json)" if self.is_begun else "starts"


def plan(
    config: DictConfig, compose: Compose, jobs: Sequence[Sequence[str]], first: int
) -> list[PlannedJob]:
    """Decide what becomes of each job, note all of them in the sweep's folder, and say it.

    Args:
        config: of the sweep.
        compose: makes a job's configuration of the sweep's and the job's overrides.
        jobs: overrides of each.
        first: number of the first of them.

    Raises:
        InputError: a job would go on with other settings than those it was begun with, another
            process runs it, or what the sweep searches by is wrong.
    """
    if OmegaConf.select(config, "hydra.sweeper.max_batch_size") is not None:
        raise InputError(
            "hydra.sweeper.max_batch_size: a job that fails would end the sweep with its batch: "
            "leave it out; hydra.launcher.n_jobs says how many run side by side"
        )
    folder = Path(str(config.hydra.sweep.dir)).absolute()
    differs = _differs(config, jobs)
    named = [job_name(each) if each else str(first + place) for place, each in enumerate(differs)]
    names = names_apart(named)
    planned = []
    listed = zip(names, map(list, jobs), differs, strict=True)
    for number, (name, overrides, own) in enumerate(listed, start=first):
        cfg = compose(config, overrides)
        with open_dict(cfg.hydra):
            cfg.hydra.job.num, cfg.hydra.job.id = number, name
            cfg.hydra.sweep.dir, cfg.hydra.sweep.subdir = str(folder), name
            cfg.hydra.runtime.output_dir = str(folder / name)
        HydraConfig.instance().set_config(cfg)  # settings name each other by it
        if OmegaConf.select(cfg, "hydra.job.config_name") == "evaluate":
            choose_policy(cfg, list(cfg.hydra.overrides.task))  # the last run may be another one
        found = read_job(folder / name, overrides, own)
        job = PlannedJob(number=number, cfg=cfg, found=found)
        if not planned:
            check_optimized(cfg)
        _check(job)
        planned.append(job)
    listed = plan_jobs(folder, [job.found for job in planned])
    if listed == len(planned) or not (folder / COMMAND).is_file():
        _keep_command(folder / COMMAND, config)
    left = sum(not job.is_done for job in planned)
    log.info("sweep: %s: jobs: %d, to do: %d", folder, len(planned), left)
    for job in planned:
        log.info("  %s: %s", job.title, job.to_do())
    return planned


def _keep_command(file: Path, config: DictConfig) -> None:
    """Note what `resume=` goes on with: words that are sound, and make all jobs of the folder."""
    job = {"config_name": OmegaConf.select(config, "hydra.job.config_name")}
    kept = {"hydra": {"overrides": config.hydra.overrides, "job": job}}
    with replacing(file) as target:
        target.write(OmegaConf.to_yaml(kept).encode())


def _differs(config: DictConfig, jobs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Of each job the values of what the sweep goes over."""
    words, params = list(config.hydra.overrides.task), sweeper_params(config.hydra.sweeper)
    swept = swept_keys(words, params)
    fixed = {word.partition("=")[0] for word in words} | {*params}
    parts = [[word.partition("=") for word in job] for job in jobs]
    given = [{key: value for key, _, value in job} for job in parts]
    # a sweeper may have further keys, of its own settings
    keys = dict.fromkeys([*swept, *(key for job in given for key in job if key not in fixed)])
    return [{key.lstrip("+"): job[key] for key in keys if key in job} for job in given]


def _check(job: PlannedJob) -> None:
    folder = job.found.folder
    if job.found.state == RUNNING:
        by = f"process {job.found.summary.get('process')} on {job.found.summary.get('host')}"
        raise InputError(f"{folder}: {by} runs this job: wait for it, or stop it first")
    if not (job.is_done or job.is_begun):
        return
    policy, before = job.cfg.get("checkpoint"), job.found.summary.get("checkpoint")
    if before is not None and policy != before:
        raise InputError(
            f"{folder} has a table of {before}, and this one would be of {policy}: give "
            "checkpoint=, or another folder with hydra.sweep.dir=FOLDER"
        )
    if other := _other_settings(job.cfg, folder / ".hydra" / "config.yaml"):
        shown = [f"{key} is {old} there and {new} here" for key, old, new in other[:_SHOWN]]
        shown += [f"{len(other) - _SHOWN} more"] * (len(other) > _SHOWN)
        raise InputError(
            f"{folder} has a job of other settings ({'; '.join(shown)}): give another folder with "
            "hydra.sweep.dir=FOLDER, or these settings again"
        )


def _other_settings(cfg: DictConfig, saved: Path) -> list[tuple[str, Any, Any]]:
    """Settings in which a job differs from what was saved: key, saved value, present one."""
    if not saved.is_file():
        return []
    try:
        old = yaml.safe_load(saved.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        old = None
    if not isinstance(old, dict):  # cut short when a disk was full: the checkpoint is checked, too
        log.warning("%s is damaged: these settings are not compared with it", saved)
        return []
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    new = yaml.safe_load(OmegaConf.to_yaml(own))
    before, now = dict(leaves(old)), dict(leaves(new))
    if before.get("resume") and Path(before["resume"]).resolve() == saved.parent.parent.resolve():
        before["resume"] = now.get("resume")  # it was gone on with by itself
    return [
        (key, before.get(key), now.get(key))
        for key in {**before, **now}
        if not key.startswith(_OF_THE_MACHINE) and before.get(key) != now.get(key)
    ]
