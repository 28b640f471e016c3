"""Reward of a trajectory as a weighted sum of named terms.

The paper's reward is token F1 alone, without a format term (arXiv 2505.04588); that is the default.
Other terms are functions of a whole trajectory and are added in YAML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zerosearch.core.errors import InputError
from zerosearch.reward.answer import extract_answer
from zerosearch.reward.metrics import cover_match, exact_match, token_f1
from zerosearch.types import Trajectory


@dataclass(kw_only=True, slots=True, frozen=True)
class RewardTerm:
    """One term of the sum: `weight * function(trajectory)`."""

    function: Callable[[Trajectory], float]
    weight: float = 1.0


@dataclass(kw_only=True, slots=True, frozen=True)
class RewardScore:
    """The reward to learn from, and the answer metrics of the same trajectory for the logs."""

    total: float
    f1: float
    em: float
    cover_em: float


def answer_f1(trajectory: Trajectory) -> float:
    """Token F1 of the trajectory's answer; 0.0 without an answer."""
    return token_f1(extract_answer(trajectory.final_text), trajectory.question.golden_answers)


def answer_exact_match(trajectory: Trajectory) -> float:
    """Exact match of the trajectory's answer; 0.0 without an answer."""
    return exact_match(extract_answer(trajectory.final_text), trajectory.question.golden_answers)


def answer_cover_match(trajectory: Trajectory) -> float:
    """Cover match of the trajectory's answer; 0.0 without an answer."""
    return cover_match(extract_answer(trajectory.final_text), trajectory.question.golden_answers)


class Rubric:
    """Scores trajectories.

    Args:
        terms: reward terms by name; None is the paper's reward, F1 with weight 1.

    Raises:
        InputError: there is no term, or a weight is not finite.
    """

    def __init__(self, terms: Mapping[str, RewardTerm] | None = None) -> None:
        self.terms = {"f1": RewardTerm(function=answer_f1)} if terms is None else dict(terms)
        if not self.terms:
            raise InputError("terms={} gives every trajectory reward 0: name at least one term")
        for name, term in self.terms.items():
            if not math.isfinite(term.weight):
                raise InputError(f"terms.{name}.weight={term.weight}: set a finite number")

    def score(self, trajectory: Trajectory) -> RewardScore:
        """Reward and answer metrics of one valid trajectory.

        Args:
            trajectory: a finished episode. An invalid one has no reward, not reward 0, so it is the
                caller's error to pass it.

        Raises:
            InputError: a term is NaN or infinite; names the term and the question.
        """
        assert trajectory.valid, f"invalid trajectory has no reward: {trajectory.error}"
        total = 0.0
        for name, term in self.terms.items():
            value = float(term.function(trajectory))
            if not math.isfinite(value):
                raise InputError(
                    f"reward term {name!r} is {value} for question {trajectory.question.uid!r} "
                    f"({trajectory.question.text!r}): return a finite number from its function"
                )
            total += term.weight * value
        return RewardScore(
            total=total,
            f1=answer_f1(trajectory),
            em=answer_exact_match(trajectory),
            cover_em=answer_cover_match(trajectory),
        )
