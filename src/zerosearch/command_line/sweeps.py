"""Sweeps: Hydra's launchers, with a plan before the first job and a line for each failure."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from zerosearch.command_line.arguments import quoted
from zerosearch.command_line.job_processes import JobProcesses
from zerosearch.command_line.optimized import JobFailed, optimized_value
from zerosearch.command_line.sweep_plan import PlannedJob, plan
from zerosearch.core.endings import report_error
from zerosearch.core.errors import InputError
from zerosearch.core.job_share import visible_gpus
from zerosearch.core.runs import read_summary

# Of Hydra's own settings those that make a sweep: a job has none of them.
OF_SWEEPS = ("hydra.mode", "hydra.sweep", "hydra/sweeper", "hydra/launcher", "hydra.launcher")
HERE = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"

_TYPED = "command-line"  # Hydra's name of where `--config-dir` comes from

log = logging.getLogger(__name__)
_failures: list[tuple[Path, str]] = []  # of this sweep's jobs: folder, and what happened
_environment: dict[str, str] = {}  # of jobs here
_others: dict[str, type[Launcher]] = {}  # launchers that `JobsElsewhere` has replaced, by name
_folders: list[Path] = []  # of this process's sweep, once it is planned
_listed: list[Path] = []  # the same, once a report has named its jobs


class JobsHere(Launcher):
    """Runs jobs on this machine, in the place of Hydra's own launcher.

    Args:
        n_jobs: how many side by side; -1: as there are GPUs, or without any as there are cores.
    """

    def __init__(self, n_jobs: int = 1) -> None:
        self._n_jobs = n_jobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._config, self._loader = config, hydra_context.config_loader

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        _set_up_log(self._config)
        planned = _plan(self._config, self._loader, job_overrides, initial_job_idx)
        left = [job for job in planned if not job.is_done]
        returned = {job.number: _returned(job, 0) for job in planned if job.is_done}

        def ended(place: int, code: int) -> None:
            returned[left[place].number] = _returned(left[place], code)

        processes = JobProcesses(_side_by_side(self._n_jobs, left), _environment)
        commands = [functools.partial(_command, job) for job in left]
        processes.run(commands, [job.title for job in left], ended)
        if processes.stopped_by is not None:
            log.warning("sweep: stopped; the same command goes on with it")
            raise SystemExit(128 + processes.stopped_by)
        return [returned[job.number] for job in planned]


class JobsElsewhere(Launcher):
    """Another launcher, such as submitit's, that gets the jobs which are left to do.

    Args:
        settings: of that launcher.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._config, self._loader = config, hydra_context.config_loader
        self._launcher = _others[config.hydra.launcher["_target_"]](**self._settings)
        self._launcher.setup(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        _set_up_log(self._config)
        planned = _plan(self._config, self._loader, job_overrides, initial_job_idx)
        left = [job for job in planned if not job.is_done]
        own = [[*job.found.overrides, *_settled(job), *_in_its_folder(job)] for job in left]
        returns = self._wait(own, initial_job_idx) if own else []
        ended = dict(zip([job.number for job in left], returns, strict=True))
        for job in left:
            if (each := ended[job.number]).status == JobStatus.FAILED:
                _failures.append((job.found.folder, f"{_named(job)}: {each._return_value}"))
                ended[job.number] = _Failed(status=each.status, _return_value=each._return_value)
        return [ended.get(job.number) or _returned(job, 0) for job in planned]

    def _wait(self, jobs: list[list[str]], first: int) -> Sequence[JobReturn]:
        try:
            return self._launcher.launch(jobs, first)
        except Exception as error:
            if not type(error).__module__.startswith("submitit."):
                raise
            said = " ".join(str(error).split())
            raise JobFailed(
                f"a job was killed on the cluster, where the others go on; when they have ended, "
                f"the same command does what is missing: {said:.500}"
            ) from error


class _Failed(JobReturn):
    """What a failed job returns: it raises, without Hydra's own line of all its overrides."""

    @property
    def return_value(self) -> Any:  # type: ignore[override]
        raise self._return_value


def register() -> None:
    """Put these launchers in the place of those that Hydra has found.

    Jobs here get the present environment: later some is set for the process of the sweep alone.
    """
    _environment.update(os.environ)
    found = Plugins.instance().class_name_to_class
    for name, launcher in list(found.items()):
        if name == HERE:
            found[name] = JobsHere
        elif issubclass(launcher, Launcher) and launcher is not JobsElsewhere:
            found[name], _others[name] = JobsElsewhere, launcher


@contextmanager
def failing_alone() -> Iterator[None]:
    """Within, a job that another launcher runs in this process ends with an error it can return.

    Raises:
        JobFailed: it would have ended this process with an exit code.
    """
    try:
        yield
    except SystemExit as error:
        config = HydraConfig.get()
        if config.mode != RunMode.MULTIRUN or not isinstance(error.code, int) or error.code <= 0:
            raise
        facts = read_summary(Path(config.runtime.output_dir))
        raise JobFailed(facts.get("error") or facts.get("status") or _ending(error.code)) from error


def report_failures(error: JobFailed) -> None:
    """Say at the end of a sweep how many of its jobs failed, and which, where no report did.

    Args:
        error: the first of them; a launcher that lost a job brings back no more.
    """
    lines = [said for job, said in _failures if not (_listed and _is_said(job, said))]
    lines = lines if _failures else [str(error)]
    log.error("\n".join([f"jobs that failed: {len(_failures) or 1}", *lines]))
    log.info("the same command does only what is missing")


def _is_said(job: Path, said: str) -> bool:
    """Whether a report names a job among those that are not completed, and with this reason."""
    facts = read_summary(job)
    status = str(facts.get("status", ""))
    return not status.startswith("completed") and str(facts.get("error") or status or None) in said


def _side_by_side(n_jobs: Any, left: Sequence[PlannedJob]) -> int:
    """How many jobs run at a time.

    Raises:
        InputError: `n_jobs` is no number of jobs, or their servers would meet at one port.
    """
    if type(n_jobs) is not int or n_jobs < -1 or n_jobs == 0:
        raise InputError(
            f"hydra.launcher.n_jobs={n_jobs}: give how many jobs run side by side, or -1 for as "
            "many as there are GPUs, or without any as there are cores"
        )
    if n_jobs == -1:
        n_jobs = len(visible_gpus()) or len(os.sched_getaffinity(0))
    count = max(1, min(n_jobs, len(left)))
    for job in left if count > 1 else []:
        port = OmegaConf.select(job.cfg, "simulator.server.port")
        if port is not None and OmegaConf.select(job.cfg, "simulator.launch"):
            raise InputError(
                f"simulator.launch=true, simulator.server.port={port}: the servers of jobs side "
                "by side would meet there: give simulator.server.port=null, any free one"
            )
    return count


@contextmanager
def reported(report: Callable[[Path], None] | None) -> Iterator[None]:
    """Within, a sweep ends with a report, however it ends.

    Args:
        report: makes it of the sweep's folder; an error there is logged.
    """
    try:
        yield
    finally:
        if report is not None and _folders:
            try:
                report(_folders[-1])
                _listed.append(_folders[-1])
            except Exception as error:  # what the jobs came to is said all the same
                report_error(error)


def _plan(
    config: DictConfig, loader: ConfigLoader, jobs: Sequence[Sequence[str]], first: int
) -> list[PlannedJob]:
    planned = plan(config, loader.load_sweep_config, jobs, first)
    _folders[:] = [job.found.folder.parent for job in planned[:1]]
    return planned


def _set_up_log(config: DictConfig) -> None:
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)


def _command(job: PlannedJob) -> list[str]:
    """The command line of a job: `zerosearch COMMAND` with the job's own overrides."""
    log.info("%s: %s", _named(job), job.to_do())
    hydra = job.cfg.hydra
    kept = [item for item in hydra.overrides.hydra if not item.startswith(OF_SWEEPS)]
    own = ["hydra.mode=RUN", f"hydra.run.dir={quoted(job.found.folder)}"]
    own.append(f"hydra.job.num={job.number}")
    words = [*hydra.overrides.task, *_settled(job), *kept, *own]
    folders = [each.path for each in hydra.runtime.config_sources if each.provider == _TYPED]
    flags = [f"--config-dir={each}" for each in folders]
    return [sys.executable, "-m", "zerosearch", hydra.job.config_name, *flags, *words]


def _settled(job: PlannedJob) -> list[str]:
    """The policy that an evaluation was planned with, whatever is the last run meanwhile."""
    if job.cfg.hydra.job.config_name != "evaluate" or job.cfg.checkpoint is None:
        return []
    return [f"checkpoint={quoted(job.cfg.checkpoint)}"]


def _in_its_folder(job: PlannedJob) -> list[str]:
    sweep, name = job.found.folder.parent, job.found.folder.name
    return [f"hydra.sweep.dir={quoted(sweep)}", f"hydra.sweep.subdir={quoted(name)}"]


def _returned(job: PlannedJob, code: int) -> JobReturn:
    """What Hydra's sweepers get of a job: the value that they go by, or its failure."""
    facts = read_summary(job.found.folder)
    try:
        if code != 0:
            told = code > 0 and facts != job.found.summary
            said = facts.get("error") or facts.get("status") if told else None
            raise JobFailed(f"{_named(job)}: {said or _ending(code)}")
        HydraConfig.instance().set_config(job.cfg)
        kind, status, value = JobReturn, JobStatus.COMPLETED, optimized_value(job.cfg, facts)
    except JobFailed as error:
        _failures.append((job.found.folder, str(error)))
        log.error(str(error))
        kind, status, value = _Failed, JobStatus.FAILED, error
    return kind(
        overrides=job.found.overrides,
        hydra_cfg=job.cfg,
        working_dir=os.getcwd(),
        status=status,
        _return_value=value,
    )


def _named(job: PlannedJob) -> str:
    return f"job {job.number} ({job.title})"


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}; its output is above"
