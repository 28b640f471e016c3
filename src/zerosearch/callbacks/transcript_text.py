"""A trajectory with its score as JSON for tools and as text for people."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from zerosearch.core.shown import shown
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


def transcript_markdown(record: StepRecord, index: int) -> str:
    """One trajectory as a fenced Markdown block, in which tags show as they are."""
    trajectory, score = record.trajectories[index], record.scores[index]
    answer = extract_answer(trajectory.final_text)
    lines = [
        f"question:  {trajectory.question.text}",
        f"golden:    {' | '.join(trajectory.question.golden_answers)}",
        f"answer:    {'(none)' if answer is None else answer}",
    ]
    if score is None:
        lines.append(f"invalid:   {trajectory.error}")
    else:
        lines.append(f"reward:    {score.total:.3f} (F1 {score.f1:.3f}, EM {score.em:.0f})")
    if record.advantages:
        lines.append(f"advantage: {record.advantages[index]:+.3f}")
    lines.append(f"stop:      {trajectory.stop_reason}")
    for number, turn in enumerate(trajectory.turns, start=1):
        lines += ["", f"── turn {number}: {_turn_title(turn)} ──", turn.text]
        if turn.observation is not None:
            lines.append(turn.observation)
    return _fenced(shown("\n".join(lines), lines=True))


def _turn_title(turn: Turn) -> str:
    if turn.result is None:
        return turn.action
    quality = {None: "", True: "noisy ", False: "useful "}[turn.result.noisy]
    found, asked = len(turn.result.documents), turn.result.requested
    return f"{turn.action}, {found} of {asked} {quality}documents"


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
