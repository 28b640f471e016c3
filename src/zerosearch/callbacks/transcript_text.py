"""A trajectory with its score as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from zerosearch.reward.answer import extract_answer
from zerosearch.training.step_record import StepRecord
from zerosearch.training.token_values import TurnTokens, tokens_of_turns
from zerosearch.types import SearchResult, Turn

_LEAST = -1e3  # of a log-prob: JSON has no infinity


def transcript_json(
    record: StepRecord, index: int, text_of: Callable[[list[int]], str] | None = None
) -> dict[str, Any]:
    """Everything that happened in trajectory `index` of `record`, as plain JSON values.

    Args:
        record: of a step or an evaluation.
        index: of the trajectory.
        text_of: makes text of token ids; where it is given, turns have the values of their tokens.
    """
    trajectory, score = record.trajectories[index], record.scores[index]
    tokens: list[TurnTokens | None] = [None] * len(trajectory.turns)
    if text_of is not None:
        tokens = tokens_of_turns(trajectory, text_of, record.entropies.get(trajectory.key))
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
        "turns": [
            _turn_json(turn) | _tokens_json(each)
            for turn, each in zip(trajectory.turns, tokens, strict=True)
        ],
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


def _tokens_json(tokens: TurnTokens | None) -> dict[str, Any]:
    if tokens is None:
        return {}
    values = {"characters": tokens.characters, "logprobs": _rounded(tokens.logprobs)}
    if tokens.entropies is not None:
        values["entropies"] = _rounded(tokens.entropies)
    return {"tokens": values}


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(max(value, _LEAST), 3) + 0.0 for value in values]  # + 0.0: no -0.0


def _search_json(result: SearchResult) -> dict[str, Any]:
    return {
        "documents": [{"title": each.title, "text": each.text} for each in result.documents],
        "requested": result.requested,
        "noisy": result.noisy,
        "latency_s": result.latency_s,
        "cached": result.cached,
    }
