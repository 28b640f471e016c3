"""Rows of open-domain question answering as their authors published them -> one form.

Known are the seven benchmarks of ZeroSearch's table (arXiv 2505.04588, section 4.1) as their
authors and the Hugging Face hub have them, and FlashRAG's one form for all (arXiv 2405.13576).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zerosearch.core.errors import InputError

ID_FIELDS = ("id", "_id", "question_id", "QuestionId")

KNOWN = (
    "question and golden_answers (FlashRAG), reward_model (Search-R1), answer (NQ-open, HotpotQA, "
    "2WikiMultiHopQA), answer with answer_aliases (MuSiQue), answer with value and aliases "
    "(TriviaQA), possible_answers (PopQA), or Question and Answer (Bamboogle, TriviaQA)"
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
    common = {"id": next((str(row[name]) for name in ID_FIELDS if row.get(name) is not None), None)}
    if row.get("golden_answers") is not None or row.get("reward_model") is not None:
        return {**row, **common}
    if row.get("answerable") is False:
        return None
    question = row.get("question", row.get("Question"))
    if "possible_answers" in row:
        answers: Any = _listed(row["possible_answers"], location)
    elif "answer_aliases" in row:
        answers = [row.get("answer"), *(row["answer_aliases"] or [])]
    else:
        answers = row.get("answer", row.get("Answer"))
        if isinstance(answers, Mapping):
            answers = _aliases(answers)
    if question is None or answers is None:
        raise InputError(
            f"{location}: the fields {sorted(row)} are of no known form; give rows with {KNOWN}"
        )
    return {**common, "question": question, "golden_answers": answers}


def _listed(value: Any, location: str) -> Any:
    """PopQA writes its list as a JSON string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{location}: field 'possible_answers' is {value!r:.80}; it must be a JSON list of "
            f"strings ({error.msg})"
        ) from error


def _aliases(answer: Mapping[str, Any]) -> list[Any] | None:
    """TriviaQA's answer and its other names, on the hub in small letters."""
    lower = {name.lower(): value for name, value in answer.items()}
    named = [lower.get("value"), *(lower.get("aliases") or [])]
    return list(dict.fromkeys(name for name in named if name)) or None
