"""Greedy answers to held-out questions during training, with engines and noise of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from zerosearch.core.distributed import gather_objects
from zerosearch.core.ranges import Share
from zerosearch.generation.generator import GREEDY, Sampling
from zerosearch.reward.answer import extract_answer
from zerosearch.reward.metrics import AnswerMetrics
from zerosearch.reward.rubric import RewardScore, Rubric
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.search.engine import SearchEngine
from zerosearch.training.failures import SearchOutage, find_outage
from zerosearch.training.metrics import rollout_metrics
from zerosearch.types import Question, Trajectory

_EVALUATION_STEP = -1  # coordinate of evaluation draws: the same documents at every validation

Result = tuple[list[Trajectory], list[RewardScore | None], dict[str, float]]


@dataclass(kw_only=True, slots=True, frozen=True)
class Evaluation:
    """One way to answer held-out questions."""

    search: SearchEngine
    noise_probability: Share = 0.0
    sampling: Sampling = field(default=GREEDY)
    breakdown: str | None = None  # key of Question.metadata to show apart, e.g. "hops"


class EvaluationRun:
    """Collects the answers of one pass over the held-out questions."""

    def __init__(
        self,
        evaluations: Mapping[str, Evaluation],
        rubric: Rubric,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.evaluations = evaluations
        self.device = device
        self.rubric = rubric
        self.seed = seed
        self.trajectories: dict[str, list[Trajectory]] = {name: [] for name in evaluations}

    def answer(self, rollouter: Rollouter, model: nn.Module, questions: list[Question]) -> None:
        """One episode per question and evaluation."""

        async def run() -> None:
            await rollouter.generator.sync_weights(model)
            for name, evaluation in self.evaluations.items():
                self.trajectories[name] += await rollouter.rollout(
                    questions,
                    evaluation.search,
                    group_size=1,
                    noise_probability=evaluation.noise_probability,
                    seed=self.seed,
                    step=_EVALUATION_STEP,
                    sampling=evaluation.sampling,
                )
            await rollouter.generator.release()

        asyncio.run(run())

    def results(self) -> dict[str, Result]:
        """Trajectories, scores and global metrics of each evaluation; a collective."""
        return {name: self._result(name) for name in self.evaluations}

    def outage(self, max_failed_share: float, remedy: str) -> SearchOutage | None:
        """The error of the first engine that failed too often; a collective (see `find_outage`)."""
        found = [
            find_outage(
                trajectories,
                max_failed_share,
                whose=f"the evaluation engine '{name}'",
                remedy=remedy,
            )
            for name, trajectories in self.trajectories.items()
        ]
        return next((outage for outage in found if outage is not None), None)

    def _result(self, name: str) -> Result:
        trajectories = self.trajectories[name]
        scores = [self.rubric.score(t) if t.valid else None for t in trajectories]
        metrics = answer_metrics(trajectories, self.device)
        for key, part in _parts(trajectories, self.evaluations[name].breakdown).items():
            part_metrics = answer_metrics(part, self.device)
            metrics |= {f"{key}/{metric}": value for metric, value in part_metrics.items()}
        rollouts = rollout_metrics(trajectories, scores)
        metrics |= {k: v for k, v in rollouts.items() if not k.startswith("reward/")}
        return trajectories, scores, metrics


def answer_metrics(trajectories: list[Trajectory], device: torch.device) -> dict[str, float]:
    """F1, EM and cover EM with 95% intervals over all ranks; a failed search counts as wrong."""
    metric = AnswerMetrics().to(device)
    for trajectory in trajectories:
        answer = extract_answer(trajectory.final_text) if trajectory.valid else None
        metric.update(answer, trajectory.question.golden_answers, failed=not trajectory.valid)
    return {name: float(value) for name, value in metric.compute().items()}


def _parts(trajectories: list[Trajectory], key: str | None) -> dict[str, list[Trajectory]]:
    """Trajectories by a key of the questions' metadata; the same names on every rank, and none
    where no question has the key, as those of recorded episodes.
    """
    if key is None:
        return {}
    parts: dict[str, list[Trajectory]] = {}
    without = f"{key}_{None}"
    for trajectory in trajectories:
        parts.setdefault(f"{key}_{trajectory.question.metadata.get(key)}", []).append(trajectory)
    names = {name for rank in gather_objects(sorted(parts)) for name in rank}
    return {} if names == {without} else {name: parts.get(name, []) for name in sorted(names)}
