"""Reward of a trajectory as a weighted sum of named terms.

The paper's reward is token F1 alone, without a format term (arXiv 2505.04588); that is the default.
Other terms are functions of a whole trajectory and are added in YAML.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zerosearch.core.bounded import TookTooLong, call_within
from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.core.ranges import Positive
from zerosearch.reward.answer import extract_answer
from zerosearch.reward.metrics import cover_match, exact_match, token_f1
from zerosearch.types import Trajectory

log = logging.getLogger(__name__)

MAX_LATE = 5  # trajectories in a row; a function that never returns must not cost hours


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
    terms: Mapping[str, float]  # by name, before their weights


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
        timeout_s: bound of one term on one trajectory.

    Raises:
        InputError: there is no term, a weight is not finite, or the bound is not above 0.
    """

    def __init__(
        self, terms: Mapping[str, RewardTerm] | None = None, timeout_s: Positive = 10.0
    ) -> None:
        self.terms = {"f1": RewardTerm(function=answer_f1)} if terms is None else dict(terms)
        self.timeout_s = timeout_s
        self._late = 0  # trajectories lost in a row
        if not self.terms:
            raise InputError("terms={} gives every trajectory reward 0: name at least one term")
        for name, term in self.terms.items():
            if not math.isfinite(term.weight):
                raise InputError(f"terms.{name}.weight={term.weight}: set a finite number")
        if not 0 < timeout_s < math.inf:
            raise InputError(f"rubric.timeout_s={timeout_s}: give seconds above 0")

    def score(self, trajectory: Trajectory) -> RewardScore | None:
        """Reward and answer metrics of one valid trajectory.

        Args:
            trajectory: a finished episode. An invalid one has no reward, not reward 0, so it is the
                caller's error to pass it.

        Returns:
            None where a term took longer than `timeout_s`: the trajectory is invalid then.

        Raises:
            InputError: a term is no finite number, or took too long again and again; names the
                term, its function and the question.
        """
        assert trajectory.valid, f"invalid trajectory has no reward: {trajectory.error}"
        values: dict[str, float] = {}
        for name, term in self.terms.items():
            who = f"reward term {name!r} ({_name_of(term.function)})"
            try:
                values[name] = self._value(who, term, trajectory)
            except TookTooLong:
                self._lose(trajectory, f"{who} took longer than {self.timeout_s:g} s")
                return None
        self._late = 0
        return RewardScore(
            total=sum((self.terms[name].weight * value for name, value in values.items()), 0.0),
            f1=answer_f1(trajectory),
            em=answer_exact_match(trajectory),
            cover_em=answer_cover_match(trajectory),
            terms=values,
        )

    def _value(self, who: str, term: RewardTerm, trajectory: Trajectory) -> float:
        question = f"question {trajectory.question.uid!r} ({trajectory.question.text!r})"
        try:
            value: Any = call_within(self.timeout_s, term.function, trajectory)
        except (ZeroSearchError, TookTooLong):
            raise
        except Exception as error:
            error.add_note(f"raised by {who} for {question}")
            raise
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # a tensor of several numbers
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"{who} returned {value!r:.80} ({type(value).__name__}) for {question}: return a "
                "finite number"
            )
        return number

    def _lose(self, trajectory: Trajectory, reason: str) -> None:
        """Make a trajectory invalid, or end the run where nothing else happens any more."""
        self._late += 1
        reason += f" for question {trajectory.question.uid!r}"
        if self._late > MAX_LATE:
            raise InputError(
                f"{reason}, and so did the {MAX_LATE} trajectories before: repair the function, or "
                "raise rubric.timeout_s"
            )
        log.warning("%s: the trajectory is left out (rubric.timeout_s)", reason)
        trajectory.stop_reason, trajectory.error = "reward_failed", reason


def _name_of(function: Callable[..., Any]) -> str:
    inner = getattr(function, "func", function)  # of a partial one
    return f"{inner.__module__}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
