"""Rows of open-domain question answering as their authors published them -> one form.

Known are the seven benchmarks of ZeroSearch's table (arXiv 2505.04588, section 4.1) as their
authors and the Hugging Face hub have them, and FlashRAG's one form for all (arXiv 2405.13576).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.data.json_text import brief
from zerosearch.data.rows import REWARD_SPEC, listed

ID_FIELDS = ("id", "_id", "question_id", "QuestionId")

KNOWN = (
    "question and golden_answers (FlashRAG), reward_model (Search-R1), reward_spec (SkyRL), answer "
    "(NQ-open, HotpotQA, 2WikiMultiHopQA), answer with answer_aliases (MuSiQue), answer with value "
    "and aliases (TriviaQA), possible_answers (PopQA), or Question and Answer (Bamboogle, TriviaQA)"
)


def common_row(row: Mapping[str, Any], location: str) -> dict[str, Any] | None:
    """A published row with the fields that `row_to_question` reads, and its `id` if it has one.

    Args:
        row: of any of the forms.
        location: file and row, for errors.

    Returns:
        The row; None for a question that its authors made unanswerable (MuSiQue).

    Raises:
        InputError: the row is of no known form.
    """
    ids = (row.get(name) for name in ID_FIELDS)
    common = {"id": next((str(each) for each in ids if isinstance(each, str | int)), None)}
    if any(row.get(name) is not None for name in ("golden_answers", "reward_model", REWARD_SPEC)):
        return {**row, **common}
    if row.get("answerable") is False:
        return None
    question = row.get("question", row.get("Question"))
    if "possible_answers" in row:
        answers: Any = _list(row["possible_answers"], "possible_answers", location)
    elif "answer_aliases" in row:
        answers = [row.get("answer"), *_list(row["answer_aliases"], "answer_aliases", location)]
    else:
        answers = row.get("answer", row.get("Answer"))
        if isinstance(answers, Mapping):
            answers = _aliases(answers, location)
    if question is None or answers is None:
        raise InputError(
            f"{location}: the fields {brief(sorted(row))} are of no known form; give rows with "
            f"{KNOWN}"
        )
    return {**common, "question": question, "golden_answers": answers}


def _list(value: Any, field: str, location: str) -> list[Any]:
    """A list, or one written as text: PopQA's is a JSON string."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        return listed(value, field, location)
    if not isinstance(value, list | None):
        raise InputError(
            f"{location}: field '{field}' is {brief(value)}; it must be a JSON list of strings"
        )
    return value or []


def _aliases(answer: Mapping[str, Any], location: str) -> list[Any] | None:
    """TriviaQA's answer and its other names, on the hub in small letters."""
    lower = {name.lower(): value for name, value in answer.items()}
    named = [lower.get("value"), *_list(lower.get("aliases"), "answer.aliases", location)]
    return [name for at, name in enumerate(named) if name and name not in named[:at]] or None
