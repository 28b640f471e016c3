"""The curves of a page: which metrics stand in one chart, and their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zerosearch.report.run_folder import RunFolder, number

_EVALUATED = re.compile(r"^(start|test|val)/([^/]+)/f1$")


@dataclass(kw_only=True, slots=True, frozen=True)
class Chart:
    """A chart of metrics over policy steps, without numbers.

    `metrics` are label -> name in `metrics.csv`, the main one first: of several runs only that one
    is drawn, and those of `beside`, whose scale is on the right. What is stacked is left out where
    it is zero throughout; with `needs_main`, so is a run that has no main one.
    """

    title: str
    caption: str
    unit: str
    metrics: dict[str, str]
    beside: dict[str, str] = field(default_factory=dict)
    stacked: bool = False
    needs_main: bool = False


CHARTS = (
    Chart(
        title="Reward and noise",
        caption="Mean reward of the sampled trajectories (left), and the chance that a search gets "
        "noisy documents (right): the figure of the paper. A reward that holds while the noise "
        "grows is a policy that copes with it.",
        unit="reward",
        metrics={"reward": "reward/total"},
        beside={"noise probability": "curriculum/noise_probability"},
    ),
    Chart(
        title="Searches and turns",
        caption="Per episode. A policy that learns to search asks more often at first.",
        unit="per episode",
        metrics={"searches": "rollout/searches", "turns": "rollout/turns"},
    ),
    Chart(
        title="How episodes end",
        caption="Share of episodes by stop reason.",
        unit="share",
        metrics={
            "answer": "stop/answer",
            "end of text, no answer": "stop/eos",
            "one search too many": "stop/max_turns",
            "empty query or answer": "stop/invalid",
            "turn too long": "stop/turn_budget",
            "context full": "stop/context",
        },
        stacked=True,
    ),
    Chart(
        title="Entropy",
        caption="Of the policy, in nats per sampled token. Near 0 siblings are alike and teach "
        "little; a steep rise is a policy that forgets.",
        unit="nats per token",
        metrics={"entropy": "loss/entropy"},
    ),
    Chart(
        title="KL divergence",
        caption="Distance of the policy to the reference policy, in nats per sampled token.",
        unit="nats per token",
        metrics={"KL": "loss/kl"},
    ),
    Chart(
        title="Log-prob gap",
        caption="Mean difference between the log-probs of sampler and trainer; should be near 0.",
        unit="nats",
        metrics={"log-prob gap": "rollout/logprob_gap"},
    ),
    Chart(
        title="Tokens",
        caption="Tokens that the policy sampled, per episode.",
        unit="per episode",
        metrics={"tokens": "rollout/tokens"},
    ),
    Chart(
        title="Fidelity of the simulator in training",
        caption="Share of the searches whose documents hold a golden answer, where useful and "
        "where noisy documents were asked for. A search for a step on the way to the answer need "
        "not find it.",
        unit="share of searches",
        metrics={
            "useful asked for": "search/answer_in_useful",
            "noisy asked for": "search/answer_in_noisy",
        },
    ),
    Chart(
        title="Failed and empty searches",
        caption="Share of trajectories lost to a failed search; share of searches without any, and "
        "with fewer documents than asked for.",
        unit="share",
        metrics={
            "failed": "search/failed",
            "empty": "search/empty",
            "incomplete": "search/incomplete",
        },
    ),
    Chart(
        title="Time by stage",
        caption="Seconds of each policy step: waiting for samples, sending weights to the sampler, "
        "learning.",
        unit="seconds per step",
        metrics={
            "sampling": "time/wait_s",
            "weight sync": "time/sync_s",
            "training": "time/train_s",
        },
        stacked=True,
    ),
    Chart(
        title="Throughput",
        caption="Tokens per second over the whole step, prompts and documents included.",
        unit="tokens/s",
        metrics={"tokens": "throughput/tokens_per_s", "sampled": "throughput/sampled_tokens_per_s"},
    ),
    Chart(
        title="Memory",
        caption="Most memory of any rank: of the GPU, or of the process on a CPU.",
        unit="GiB",
        metrics={"peak": "memory/peak_gib"},
    ),
    Chart(
        title="Cost",
        caption="Of the simulator's language model, since the run began.",
        unit="US dollars",
        metrics={"cost": "cost/usd"},
    ),
    Chart(
        title="Loss of replies",
        caption="Cross-entropy of the replies that a simulator is tuned on.",
        unit="nats per token",
        metrics={"training": "loss/reply", "validation": "val/loss"},
        needs_main=True,
    ),
    Chart(
        title="Loss of turns",
        caption="Cross-entropy of the turns that a policy is tuned on, before it learns by reward.",
        unit="nats per token",
        metrics={"training": "loss/turns", "validation": "val/loss"},
        needs_main=True,
    ),
)


def charts_of(runs: Sequence[RunFolder]) -> tuple[list[dict[str, Any]], list[str]]:
    """All charts that have something to show, as plain values.

    Returns:
        The charts; and metrics that are zero from start to end, whose charts are left out.
    """
    drawn, zero = [], []
    for chart in CHARTS:
        series = [
            each
            for number_of_run, run in enumerate(runs)
            for each in _series(chart, run, number_of_run, len(runs) > 1)
        ]
        if any(any(each["y"]) for each in series):
            drawn.append(_plain(chart, series, stacked=chart.stacked and len(runs) == 1))
        elif series:
            zero += [name for name in chart.metrics.values() if _is_anywhere(name, runs)]
    evaluated = [
        each
        for index, run in enumerate(runs)
        for each in evaluations(run, index, several=len(runs) > 1)
    ]
    if evaluated:
        drawn.insert(1 if drawn else 0, _plain(EVALUATIONS, evaluated))
    return drawn, zero


EVALUATIONS = Chart(
    title="F1 on held-out questions",
    caption="Greedy answers, by the engine that was searched, with 95% intervals. Diamonds: the "
    "test questions before and after training; lines: the validation questions.",
    unit="F1",
    metrics={},
)


def _plain(chart: Chart, series: list[dict[str, Any]], *, stacked: bool = False) -> dict[str, Any]:
    shown = {"title": chart.title, "caption": chart.caption, "unit": chart.unit}
    beside = next(iter(chart.beside), "")
    return shown | {"beside": beside, "stacked": stacked, "series": series}


def _series(chart: Chart, run: RunFolder, index: int, several: bool) -> Iterable[dict[str, Any]]:
    main = list(chart.metrics.items())[: 1 if several else None]
    if chart.needs_main and not _points(run, main[0][1])[0]:
        return
    right = [(label, metric, True) for label, metric in chart.beside.items()]
    for hue, (label, metric, is_right) in enumerate([*((*each, False) for each in main), *right]):
        x, y = _points(run, metric)
        if x and (any(y) or not chart.stacked):
            yield {"run": index, "label": label, "hue": hue, "x": x, "y": y, "right": is_right}


def _points(run: RunFolder, metric: str) -> tuple[list[int], list[float]]:
    pairs = [(x, y) for x, y in zip(run.steps, run.column(metric), strict=True) if y is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _is_anywhere(metric: str, runs: Iterable[RunFolder]) -> bool:
    return any(_points(run, metric)[0] for run in runs)


def evaluations(run: RunFolder, index: int, *, several: bool) -> list[dict[str, Any]]:
    """F1 of held-out questions as curves, by engine and by whose questions; see `charts_of`.

    Args:
        run: with validations or with test results.
        index: of the run.
        several: runs are drawn, so that the headline's engine is enough.
    """
    return [*_evaluations(run, index, several)]


def _evaluations(run: RunFolder, index: int, several: bool) -> Iterable[dict[str, Any]]:
    known = {found[2] for name in (*run.metrics, *run.summary) if (found := _EVALUATED.match(name))}
    order = dict.fromkeys([run.summary.get("engine"), *sorted(known)])
    engines = [each for each in order if each in known]
    last = max(run.steps, default=0)
    for hue, engine in enumerate(engines[: 1 if several else None]):  # the headline's is first
        name = f"val/{engine}/f1"
        validated = [(step, row, name) for step, row in zip(run.steps, run.rows, strict=True)]
        tests = [(s, run.summary, f"{p}/{engine}/f1") for s, p in ((0, "start"), (last, "test"))]
        for label, is_test, places in (("validation", False, validated), ("test", True, tests)):
            found = [each for each in places if number(each[1].get(each[2])) is not None]
            if found:
                yield {
                    "run": index,
                    "label": f"{engine}, {label}",
                    "hue": hue,
                    "x": [step for step, _, _ in found],
                    **{
                        key: [number(row.get(metric + bound)) for _, row, metric in found]
                        for key, bound in (("y", ""), ("low", "_low"), ("high", "_high"))
                    },
                    "test": is_test,
                }


def all_metrics(runs: Sequence[RunFolder]) -> dict[str, list[dict[str, Any]]]:
    """Every column of `metrics.csv`, by name: `run`, `x` and `y` of each run that has it."""
    names = sorted({name for run in runs for name in run.metrics})
    found = {}
    for name in names:
        points = [(index, *_points(run, name)) for index, run in enumerate(runs)]
        found[name] = [{"run": index, "x": x, "y": y} for index, x, y in points if x]
    return {name: series for name, series in found.items() if series}
