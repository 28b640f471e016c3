"""A trajectory with its score as JSON."""

from __future__ import annotations

from typing import Any

from zerosearch.reward.answer import extract_answer
from zerosearch.training.step_record import StepRecord
from zerosearch.types import SearchResult, Turn


def transcript_json(record: StepRecord, index: int) -> dict[str, Any]:
    """Everything that happened in trajectory `index` of `record`, as plain JSON values."""
    trajectory, score = record.trajectories[index], record.scores[index]
    return {
        "step": record.step,
        "phase": record.phase,
        "uid": trajectory.question.uid,
        "source": trajectory.question.source,
        "question": trajectory.question.text,
        "golden_answers": list(trajectory.question.golden_answers),
        "group": trajectory.group,
        "sibling": trajectory.sibling,
        "answer": extract_answer(trajectory.final_text),
        "stop_reason": trajectory.stop_reason,
        "error": trajectory.error,
        "reward": None if score is None else score.total,
        "f1": None if score is None else score.f1,
        "em": None if score is None else score.em,
        "cover_em": None if score is None else score.cover_em,
        "advantage": record.advantages[index] if record.advantages else None,
        "noise_probability": record.noise_probability,
        "turns": [_turn_json(turn) for turn in trajectory.turns],
    }


def _turn_json(turn: Turn) -> dict[str, Any]:
    return {
        "text": turn.text,
        "action": turn.action,
        "query": turn.query,
        "search": None if turn.result is None else _search_json(turn.result),
        "observation": turn.observation,
        "sampled_tokens": turn.sampled_tokens,
        "inserted_tokens": turn.inserted_tokens,
    }


def _search_json(result: SearchResult) -> dict[str, Any]:
    return {
        "documents": [{"title": each.title, "text": each.text} for each in result.documents],
        "requested": result.requested,
        "noisy": result.noisy,
        "latency_s": result.latency_s,
        "cached": result.cached,
    }
