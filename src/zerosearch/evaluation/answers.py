"""One answered question as a row; the time it took stands apart from what equal runs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zerosearch.reward.metrics import cover_match, exact_match, token_f1
from zerosearch.rollout.agent import PlayedEpisode
from zerosearch.types import Question

AnswerRows = Sequence[Mapping[str, Any]]  # of `answer_row`

TIMES = "times"  # the one field of a journal's row that differs between equal runs


def answer_row(question: Question, played: PlayedEpisode, seconds: float) -> dict[str, Any]:
    """A row of the journal.

    Args:
        question: what was asked.
        played: the episode; one that failed counts as unanswered.
        seconds: from its first token to its answer, other questions under way meanwhile.
    """
    trajectory = played.trajectory
    answer = played.answer if trajectory.valid else None
    golden, searches = question.golden_answers, trajectory.searches
    return {
        "id": question.uid,
        "question": question.text,
        "golden_answers": list(golden),
        "answer": answer,
        "em": exact_match(answer, golden),
        "cover_em": cover_match(answer, golden),
        "f1": token_f1(answer, golden),
        "stop": trajectory.stop_reason,
        "error": trajectory.error,
        "metadata": _plain(question.metadata),
        "searches": len(searches),
        "empty_searches": sum(not found.documents for found in searches),
        "failed_searches": int(trajectory.stop_reason == "search_failed"),
        "sampled_tokens": sum(turn.sampled_tokens for turn in trajectory.turns),
        "turns": [
            {
                "text": turn.text,
                **({} if turn.query is None else {"query": turn.query}),
                **({} if turn.observation is None else {"observation": turn.observation}),
            }
            for turn in trajectory.turns
        ],
        "cost_usd": played.cost_usd
        + trajectory.lost_usd
        + sum(found.cost_usd for found in searches),
        TIMES: {
            "seconds": round(seconds, 6),
            "search_seconds": [round(found.latency_s, 6) for found in searches],
        },
    }


def without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    """What equal runs write in equal bytes."""
    return {name: value for name, value in row.items() if name != TIMES}


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (str, int, float, bool)
    return {key: value for key, value in metadata.items() if isinstance(value, kinds)}
