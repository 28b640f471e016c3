"""Metrics of a policy step under their TensorBoard paths, averaged over all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import get_args

import torch

from zerosearch.core.distributed import gather_objects
from zerosearch.core.memory import OWN_PEAK
from zerosearch.reward.answer import has_answer
from zerosearch.reward.rubric import RewardScore, answer_f1
from zerosearch.rollout.free_text import read_free_text
from zerosearch.simulator.fidelity import fidelity_of, measure_search
from zerosearch.training.rollout_plan import SampledBatch
from zerosearch.types import StopReason, Trajectory

_TRUNCATED = ("turn_budget", "context")
_FAILURES = ("search_failed", "model_failed", "reward_failed")


class Means:
    """Means by name that can be merged over ranks, whatever names each rank has seen."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, name: str, value: float, count: float = 1.0) -> None:
        """Add `value`, the sum over `count` observations."""
        entry = self._sums[name]
        entry[0] += value
        entry[1] += count

    def reduced(self) -> dict[str, float]:
        """Global means; a collective where processes are distributed."""
        merged: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for part in gather_objects(dict(self._sums)):
            for name, (value, count) in part.items():
                merged[name][0] += value
                merged[name][1] += count
        return {name: value / count for name, (value, count) in merged.items() if count}


def rollout_metrics(
    trajectories: Sequence[Trajectory], scores: Sequence[RewardScore | None]
) -> dict[str, float]:
    """Reward, length, stop reason and search metrics over all ranks; a collective.

    Args:
        trajectories: of this rank.
        scores: aligned with them; None where a search or the reward failed.
    """
    means = Means()
    for trajectory, score in zip(trajectories, scores, strict=True):
        means.add("rollout/valid", trajectory.valid)
        without_reward = trajectory.stop_reason == "reward_failed"
        means.add("reward/failed", without_reward)
        means.add("search/failed", not trajectory.valid and not without_reward)
        if score is None:
            continue
        means.add("reward/total", score.total)
        means.add("reward/f1", score.f1)
        means.add("reward/em", score.em)
        means.add("reward/cover_em", score.cover_em)
        if len(score.terms) > 1:  # else it is the total
            for name, value in score.terms.items():
                means.add(f"reward/term/{name}", value)
        means.add("rollout/turns", len(trajectory.turns))
        means.add("rollout/searches", len(trajectory.searches))
        means.add("rollout/tokens", sum(trajectory.sampled))
        means.add("rollout/repetition", repetition(trajectory))
        means.add("rollout/answered", has_answer(trajectory.final_text))
        texts = [read_free_text(turn.text) for turn in trajectory.turns]
        means.add("rollout/broken_tags", sum(text.broken_tags for text in texts), len(texts))
        means.add("rollout/text_repetition", sum(text.repetition for text in texts), len(texts))
        means.add("rollout/truncated", trajectory.stop_reason in _TRUNCATED)
        for reason in get_args(StopReason):
            if reason not in _FAILURES:  # counted as search/failed or reward/failed
                means.add(f"stop/{reason}", trajectory.stop_reason == reason)
    found = means.reduced()
    if not found.get("reward/failed"):
        found.pop("reward/failed", None)  # no column for what hardly a run has
    return found | _search_metrics(trajectories)


def repetition(trajectory: Trajectory, n: int = 4) -> float:
    """Share of the sampled n-grams that occurred before in the trajectory, from 0 to 1.

    Source: seq-rep-n of Welleck et al., "Neural Text Generation with Unlikelihood Training",
    arXiv 1908.04319, on tokens; n-grams with an inserted token in them do not count.
    """
    ids, sampled = trajectory.response_ids, trajectory.sampled
    grams = [
        tuple(ids[start : start + n])
        for start in range(len(ids) - n + 1)
        if all(sampled[start : start + n])
    ]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def likelihood_metrics(
    trajectories: Sequence[Trajectory], scores: Sequence[RewardScore | None]
) -> dict[str, float]:
    """How unlikely the sampler found the tokens of right trajectories; a collective.

    Source: their likelihood sinks before a run collapses (lazy likelihood displacement,
    arXiv 2512.04220). Nothing where no answer is right.

    Args:
        trajectories: of this rank, with log-probs of the sampler.
        scores: aligned with them; right is an exact match.
    """
    means = Means()
    for trajectory, score in zip(trajectories, scores, strict=True):
        if score is not None and score.em == 1.0:  # log-probs are 0 where nothing was sampled
            means.add("rollout/right_nll", -sum(trajectory.logprobs), sum(trajectory.sampled))
    return means.reduced()


def _search_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """How well the engine played its part, in the trajectories that count."""
    own = [
        measure_search(result, trajectory.question.golden_answers)
        for trajectory in trajectories
        if trajectory.valid
        for result in trajectory.searches
    ]
    every = [each for part in gather_objects(own) for each in part]
    found = fidelity_of(every)
    found.pop("cost_usd", None)  # a sum, which `Costs` reports for the whole run
    return {f"search/{name}": value for name, value in found.items()}


class Costs:
    """What a whole run has cost so far, over all ranks and resumptions.

    `cost/searches` and `cost/calls` (requests to servers, repeated ones included; a cached search
    makes none) count the training episodes. `cost/tokens` and `cost/usd` count whatever was paid
    for: evaluations, searches that failed, and the check of the simulator, too.
    """

    def __init__(self) -> None:
        self.totals = {"cost/searches": 0.0, "cost/calls": 0.0, "cost/tokens": 0.0, "cost/usd": 0.0}

    def add(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """Count training episodes of this rank; returns the totals; a collective."""
        results = [result for trajectory in trajectories for result in trajectory.searches]
        self._gather(
            {
                "cost/searches": len(results),
                "cost/calls": sum(result.attempts for result in results),
                **_paid(trajectories),
            }
        )
        return dict(self.totals)

    def add_evaluation(self, trajectories: Sequence[Trajectory]) -> None:
        """Count what evaluation episodes of this rank have cost; a collective."""
        self._gather(_paid(trajectories))

    def charge(self, tokens: float, usd: float) -> None:
        """Count what all ranks know of."""
        self.totals["cost/tokens"] += tokens
        self.totals["cost/usd"] += usd

    @property
    def usd(self) -> float:
        """Dollars so far; the same on all ranks."""
        return self.totals["cost/usd"]

    def _gather(self, own: dict[str, float]) -> None:
        for part in gather_objects(own):
            for name, value in part.items():
                self.totals[name] += value


def _paid(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    results = [result for trajectory in trajectories for result in trajectory.searches]
    tokens = sum(result.tokens for result in results)
    usd = sum(result.cost_usd for result in results)
    return {
        "cost/tokens": tokens + sum(trajectory.lost_tokens for trajectory in trajectories),
        "cost/usd": usd + sum(trajectory.lost_usd for trajectory in trajectories),
    }


def step_metrics(
    sampled: SampledBatch,
    scores: Sequence[RewardScore | None],
    costs: Costs,
    seconds: float,
) -> dict[str, float]:
    """What a policy step's trajectories were like, over all ranks; a collective.

    Args:
        sampled: of this rank; costs and throughput count the dropped trajectories, too.
        scores: aligned with those that are trained on; None where a search failed.
        costs: of the run so far; this step's are added.
        seconds: of the whole step.
    """
    lags = Means()
    for lag in sampled.lags:
        lags.add("rollout/lag", lag)
    found = rollout_metrics(sampled.trajectories, scores)
    # a real engine draws no noise, whatever the curriculum asks of it
    drawn = "search/noisy" in found
    noise = {"curriculum/noise_probability": sampled.noise_probability} if drawn else {}
    return {
        **found,
        **resampling_metrics(sampled),
        **likelihood_metrics(sampled.trajectories, scores),
        **lags.reduced(),
        **costs.add(sampled.played),
        **throughput(sampled.played, seconds),
        **noise,
    }


def resampling_metrics(sampled: SampledBatch) -> dict[str, float]:
    """How many groups were replaced, and how good the policy is without that selection.

    Over all ranks; a collective. Nothing where groups are not replaced.
    """
    means = Means()
    if sampled.rounds is not None:
        # groups are equally large
        means.add("sampling/dropped_groups", len(sampled.dropped), len(sampled.played))
        means.add("sampling/rounds", sampled.rounds)
        for trajectory in sampled.played:
            if trajectory.valid:
                means.add("reward/f1_played", answer_f1(trajectory))
    return means.reduced()


def throughput(trajectories: Sequence[Trajectory], seconds: float) -> dict[str, float]:
    """Trajectories and tokens a second over all ranks; a collective."""
    own = {
        "trajectories": len(trajectories),
        "tokens": sum(len(t.prompt_ids) + len(t.response_ids) for t in trajectories),
        "sampled_tokens": sum(sum(trajectory.sampled) for trajectory in trajectories),
    }
    ranks = gather_objects(own)
    return {f"throughput/{name}_per_s": sum(rank[name] for rank in ranks) / seconds for name in own}


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure what `peak_memory_gib` returns."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        OWN_PEAK.reset()


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that any rank has used since `reset_peak_memory`; a collective.

    On a GPU what torch allocated there, else all that the process held.
    """
    if device.type == "cuda":
        own = torch.cuda.max_memory_allocated(device)
    else:
        own = OWN_PEAK.bytes()
    return max(gather_objects(own / 2**30))
