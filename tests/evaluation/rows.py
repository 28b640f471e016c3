"""Rows of answered questions, all of them to be answered with "red"."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zerosearch.evaluation.answers import TIMES, answer_row, without_times
from zerosearch.rollout.agent import PlayedEpisode
from zerosearch.types import Document, Question, SearchResult, Trajectory, Turn


def answers(given: Sequence[str | None], *, error: str | None = None) -> list[dict[str, Any]]:
    """A row per answer, with one search each."""
    rows = []
    for number, answer in enumerate(given):
        question = Question(uid=f"q:{number}", text=f"colour {number}?", golden_answers=("red",))
        found = SearchResult(documents=(Document(text="x"),), requested=1, cost_usd=0.5)
        trajectory = Trajectory(question=question, group=0, sibling=0, prompt_ids=[], error=error)
        trajectory.turns = [
            Turn(text="s", action="search", query="s", result=found, sampled_tokens=3),
            Turn(text="a", action="answer", sampled_tokens=4),
        ]
        row = answer_row(question, PlayedEpisode(trajectory=trajectory, answer=answer), 0.25)
        row[TIMES]["share_of_block_seconds"] = 0.125
        rows.append(row)
    return rows


def write_answers(path: Path, given: Sequence[str | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(without_times(row)) for row in answers(given))
    path.write_text("".join(f"{line}\n" for line in lines))
