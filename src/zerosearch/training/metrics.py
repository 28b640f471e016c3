"""Metrics of a policy step under their TensorBoard paths, averaged over all ranks."""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Sequence
from typing import get_args

import torch

from zerosearch.reward.metrics import normalize_answer
from zerosearch.reward.rubric import RewardScore
from zerosearch.training.distributed import gather_objects, world_size
from zerosearch.types import SearchResult, StopReason, Trajectory

_TRUNCATED = ("turn_budget", "context")


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


def rollout_means(
    trajectories: Sequence[Trajectory], scores: Sequence[RewardScore | None]
) -> Means:
    """Reward, length, stop reason and search metrics of some trajectories."""
    means = Means()
    for trajectory, score in zip(trajectories, scores, strict=True):
        means.add("rollout/valid", trajectory.valid)
        means.add("search/failed", not trajectory.valid)
        if score is None:
            continue
        means.add("reward/total", score.total)
        means.add("reward/f1", score.f1)
        means.add("reward/em", score.em)
        means.add("reward/cover_em", score.cover_em)
        means.add("rollout/turns", len(trajectory.turns))
        means.add("rollout/searches", len(trajectory.searches))
        means.add("rollout/tokens", sum(trajectory.sampled))
        means.add("rollout/truncated", trajectory.stop_reason in _TRUNCATED)
        for result in trajectory.searches:
            _add_search(means, result, trajectory.question.golden_answers)
        for reason in get_args(StopReason):
            if reason != "search_failed":  # counted as search/failed
                means.add(f"stop/{reason}", trajectory.stop_reason == reason)
    return means


def _add_search(means: Means, result: SearchResult, golden_answers: tuple[str, ...]) -> None:
    means.add("search/latency_s", result.latency_s)
    means.add("search/empty", not result.documents)
    means.add("search/cached", result.cached)
    means.add("search/documents", len(result.documents))
    if result.noisy is not None:
        means.add("search/noisy", result.noisy)
        found = any(_mentions(doc.text, golden_answers) for doc in result.documents)
        means.add("search/answer_in_noisy" if result.noisy else "search/answer_in_useful", found)


def _mentions(text: str, golden_answers: tuple[str, ...]) -> bool:
    """Whether a text holds an answer as whole words; `cover_match` would find "IN" in "China"."""
    words = f" {normalize_answer(text)} "
    return any(
        (answer := normalize_answer(golden)) and f" {answer} " in words for golden in golden_answers
    )


def check_failures(trajectories: Sequence[Trajectory], max_failed_share: float) -> None:
    """Stop the run when searches fail too often on all ranks together (invariant 4).

    Raises:
        RuntimeError: with the endpoint and reason of one failure.
    """
    means = Means()
    for trajectory in trajectories:
        means.add("failed", not trajectory.valid)
    failed = means.reduced().get("failed", 0.0)
    if failed > max_failed_share:
        errors = [t.error for t in trajectories if t.error is not None]
        example = f", for example: {errors[0]}" if errors else ""
        raise RuntimeError(
            f"{failed:.0%} of this step's trajectories were lost to failed searches, more than "
            f"module.max_failed_share={max_failed_share}{example}"
        )


def throughput(trajectories: Sequence[Trajectory], seconds: float) -> dict[str, float]:
    """Trajectories and tokens a second over all ranks, each with equally many questions."""
    sampled = sum(sum(trajectory.sampled) for trajectory in trajectories)
    total = sum(len(t.prompt_ids) + len(t.response_ids) for t in trajectories)
    ranks = world_size()
    return {
        "throughput/trajectories_per_s": ranks * len(trajectories) / seconds,
        "throughput/tokens_per_s": ranks * total / seconds,
        "throughput/sampled_tokens_per_s": ranks * sampled / seconds,
    }


def peak_memory_gib(device: torch.device) -> float:
    """Most memory used so far: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
