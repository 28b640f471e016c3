"""A term of the reward: a function of one trajectory."""

from zerosearch.reward.answer import extract_answer
from zerosearch.types import Trajectory


def short_answer(trajectory: Trajectory, *, words: int) -> float:
    """1.0 where there is an answer of at most so many words, else 0.0."""
    answer = extract_answer(trajectory.final_text)
    return float(answer is not None and 1 <= len(answer.split()) <= words)
