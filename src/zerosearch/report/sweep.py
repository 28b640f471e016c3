"""The final numbers of several runs by what differs between them, with means over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zerosearch.core.sweep_folder import COMPLETED, SweepJob, jobs_of_sweep, read_job
from zerosearch.report.facts import LAST_STEPS, Measured, engine_scores, tested
from zerosearch.report.run_folder import RunFolder, number, read_run

SEED = "seed"  # the key whose values are repetitions
INTERVALS = (
    "In brackets are 95% intervals. Of several seeds: the mean, with the interval of Student's t "
    "between the seeds, which of two is wide, and none where all seeds agree. Of one seed: F1 with "
    "the bootstrap interval over its test questions, which says nothing of other seeds."
)
# 0.975 quantiles of Student's t distribution: 1 to 30 degrees of freedom; of more, the last one.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_SHARE, _FROM_0 = (0.0, 1.0), (0.0, math.inf)
_STEPS = f"last {LAST_STEPS} steps"


@dataclass(kw_only=True, slots=True, frozen=True)
class Trial:
    """One run among several, or a job of a sweep that has not begun to be one."""

    job: SweepJob
    run: RunFolder | None

    @property
    def finished(self) -> bool:
        """Whether its numbers count: it went to its end, and nothing stopped it before."""
        return self.job.state == COMPLETED and self.job.said is None


@dataclass(kw_only=True, slots=True, frozen=True)
class Measure:
    """A number that finished runs have."""

    name: str  # as a column of a file
    heading: str
    form: str  # of `format`
    of: Callable[[RunFolder], Measured | None]
    bounds: tuple[float, float] = (-math.inf, math.inf)  # within which it always lies
    before: Callable[[RunFolder], Measured | None] | None = None  # the same before training
    sampled: bool = True  # False: depends on the machine; a mean over seeds has no interval


@dataclass(kw_only=True, slots=True, frozen=True)
class Setting:
    """The trials that differ in their seed alone."""

    values: dict[str, str]  # without the seed
    trials: list[Trial]

    @property
    def finished(self) -> list[RunFolder]:
        """Runs whose numbers count, one of each seed: the same seed again is no other sample."""
        runs = [each.run for each in self.trials if each.finished and each.run is not None]
        return [*{run.summary.get("seed", str(run.path)): run for run in runs}.values()]

    @property
    def planned(self) -> int:
        """How many seeds it was to have."""
        return len({each.job.differs.get(SEED, str(each.job.folder)) for each in self.trials})

    @property
    def label(self) -> str:
        """In words of the command line."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items() if value)

    def seeds(self, measure: Measure) -> list[float]:
        """The number of each finished run that has it."""
        return [found.value for run in self.finished if (found := measure.of(run)) is not None]

    def estimate(self, measure: Measure) -> Measured | None:
        """Mean over the seeds, with the interval that `INTERVALS` describes."""
        found = [each for run in self.finished if (each := measure.of(run)) is not None]
        if len(found) < 2:
            return found[0] if found else None
        values = [each.value for each in found]
        if not measure.sampled or len({*values}) == 1:  # no interval of width 0 between equals
            return Measured(value=sum(values) / len(values))
        return mean_of(values, measure.bounds)


def mean_of(
    values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Measured:
    """Mean with its 95% interval by Student's t, cut at the bounds of what is possible.

    Args:
        values: two or more, independent.
        bounds: of them.
    """
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = _T[min(count - 1, len(_T)) - 1] * math.sqrt(variance / count)
    return Measured(value=mean, low=max(bounds[0], mean - half), high=min(bounds[1], mean + half))


def trials_of_sweep(folder: Path) -> list[Trial]:
    """The jobs of a sweep, those never begun included.

    Raises:
        InputError: the list of the jobs, or a file of a run, cannot be read.
    """
    jobs = jobs_of_sweep(folder)
    return [Trial(job=job, run=read_run(job.folder) if job.summary else None) for job in jobs]


def trials_of(runs: Iterable[RunFolder]) -> list[Trial]:
    """Runs that were started one by one."""
    return [Trial(job=read_job(run.path, run.overrides, run.differing), run=run) for run in runs]


def settings_of(trials: Iterable[Trial]) -> list[Setting]:
    """Trials by what they differ in but the seed, numbers in ascending order."""
    trials = list(trials)
    keys = [key for key in dict.fromkeys(k for t in trials for k in t.job.differs) if key != SEED]
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        # what one command swept may have had one value in another one
        parts = [word.partition("=") for word in trial.job.overrides]
        words = {key: value for key, _, value in parts}
        values = tuple(trial.job.differs.get(key, words.get(key, "")) for key in keys)
        groups.setdefault(values, []).append(trial)
    settings = [
        Setting(values=dict(zip(keys, values, strict=True)), trials=group)
        for values, group in groups.items()
    ]
    orders = {key: values_of(settings, key) for key in keys}
    return sorted(settings, key=lambda each: [orders[k].index(each.values[k]) for k in keys])


def values_of(settings: Iterable[Setting], key: str) -> list[str]:
    """The different values of a key: numbers in ascending order, others as they come."""
    values = [*dict.fromkeys(each.values[key] for each in settings)]
    return sorted(values, key=float) if all_numbers(values) else values


def all_numbers(values: Iterable[str]) -> bool:
    """Whether all values are finite numbers."""
    return all(number(value) is not None for value in values)


def measures_of(settings: Sequence[Setting]) -> list[Measure]:
    """What finished runs have, the headline first."""
    runs = [run for setting in settings for run in setting.finished]
    engines = [*dict.fromkeys(score.engine for run in runs for score in engine_scores(run))]
    f1 = [_tested("test", "after", engine) for engine in engines]
    f1 += [_tested("start", "before", engine) for engine in engines[:1]]
    found = {each.name: [each.of(run) for run in runs] for each in [*f1, *_OF_ALL]}
    paid = any(cost is not None and cost.value for cost in found["cost/usd"])
    return [
        each
        for each in [*f1, *_OF_ALL]
        if any(value is not None for value in found[each.name])
        and (paid or each.name != "cost/usd")
    ]


def _tested(phase: str, when: str, engine: str) -> Measure:
    name = f"{phase}/{engine}/f1"
    return Measure(
        name=name,
        heading=f"F1 {when} training ({engine})",
        form=".3f",
        of=lambda run: tested(run, name),
        bounds=_SHARE,
        before=lambda run: tested(run, f"start/{engine}/f1"),
    )


def _value(value: float | None) -> Measured | None:
    return None if value is None else Measured(value=value)


def _final(metric: str) -> Callable[[RunFolder], Measured | None]:
    return lambda run: _value(run.final(metric))


def _last(metric: str) -> Callable[[RunFolder], Measured | None]:
    return lambda run: _value(run.mean(metric, last=LAST_STEPS))


_OF_ALL = (  # runs, besides F1 by engine
    Measure(
        name="test/loss",
        heading="loss after training",
        form=".3f",
        of=_final("test/loss"),
        before=_final("start/loss"),
    ),
    Measure(name="start/loss", heading="loss before training", form=".3f", of=_final("start/loss")),
    Measure(name="reward/total", heading=f"reward, {_STEPS}", form=".3f", of=_last("reward/total")),
    Measure(
        name="rollout/searches",
        heading=f"searches per episode, {_STEPS}",
        form=".2f",
        of=_last("rollout/searches"),
        bounds=_FROM_0,
    ),
    Measure(
        name="curriculum/noise_probability",
        heading="noise at the end",
        form=".2f",
        of=_final("curriculum/noise_probability"),
        bounds=_SHARE,
    ),
    Measure(
        name="loss/kl", heading=f"KL, {_STEPS}", form=".3f", of=_last("loss/kl"), bounds=_FROM_0
    ),
    Measure(
        name="cost/usd",
        heading="cost, US dollars",
        form=".2f",
        of=_final("cost/usd"),
        bounds=_FROM_0,
    ),
    Measure(
        name="minutes",
        heading="minutes",
        form=".1f",
        of=lambda run: _value(run.seconds and run.seconds / 60),
        sampled=False,
    ),
)
