"""Rows of question-answering data sets <-> `Question`, and nothing about files.

Accepts every form that Search-R1, ZeroSearch and their relatives are published in: the answers may
sit in `golden_answers`, in `reward_model.ground_truth` (a mapping with `target`, a list, an array,
or one string joined by `<|answer_split|>`), in the same of `reward_spec` (SkyRL) or in `answer`; a
list may be written as text, as in CSV files. The question may sit in `question`, in
`extra_info.question` (beside a `prompt` with the whole instruction: verl's and SkyRL's
preprocessing of Search-R1's data) or only in the user text of `prompt`. Anything else is an error
that names place, field and remedy: a row that is silently dropped or guessed at would change what
is trained.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zerosearch.core.errors import InputError
from zerosearch.data.json_text import brief, check_writable
from zerosearch.types import Question

ANSWER_SEPARATOR = "<|answer_split|>"
REWARD_SPEC = "reward_spec"  # SkyRL's name of `reward_model`

# Tags of an episode's grammar, ours and those of tool calls: they stand in an instruction.
_TAG = re.compile(r"</?(?:think|search|information|answer|tool_call|tool_response)>", re.IGNORECASE)
_TEXT = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
# Spaces are taken whole (*+): given back one by one, 50,000 of them would take half a minute.
_TEXT_OF_LIST = re.compile(rf"\[\s*+(?:{_TEXT}\s*+(?:,\s*+{_TEXT}\s*+)*+,?\s*+)?\]", re.DOTALL)


@dataclass(kw_only=True, slots=True, frozen=True)
class Columns:
    """Column names of a data set; the defaults are those of Search-R1 and ZeroSearch."""

    question: str = "question"
    prompt: str = "prompt"  # list of {role, content}; read where `question` is absent
    golden_answers: str = "golden_answers"
    reward_model: str = (
        "reward_model"  # {style, ground_truth}; read where the column above is absent
    )
    answer: str = "answer"  # read where both columns above are absent
    data_source: str = "data_source"
    extra_info: str = "extra_info"


DEFAULT_COLUMNS = Columns()


def row_to_question(
    row: Mapping[str, Any],
    *,
    location: str,
    source: str | None,
    uid: str | None = None,
    columns: Columns = DEFAULT_COLUMNS,
) -> Question:
    """Read one row of a data set.

    Args:
        row: column name -> value; None counts as absent.
        location: file and row number, as the user should read it in an error.
        source: name of the data set, used where the row has no `data_source` of its own.
        uid: identity of the question, unique over all sources; None takes `location`. The row's
            own `extra_info.index` is never used: it restarts in every data set.
        columns: where to look for what.

    Returns:
        The question, stripped; blank golden answers are dropped, others (even those that
        normalise to nothing, such as "The") are kept in order; `extra_info` becomes the metadata.

    Raises:
        InputError: a field is missing, empty or of the wrong type.
    """
    data_source = _text(row, columns.data_source, location)
    extra_info = row.get(columns.extra_info)
    if extra_info is not None and not isinstance(extra_info, Mapping):
        raise _wrong_type(location, columns.extra_info, extra_info, "a mapping such as {index: 3}")
    question = Question(
        uid=uid if uid is not None else location,
        text=_question_text(row, columns, location),
        golden_answers=_golden_answers(row, columns, location),
        source=data_source or source or "unknown",
        metadata={key: value for key, value in (extra_info or {}).items() if value is not None},
    )
    for name, value in (
        ("question", question.text),
        ("golden answers", question.golden_answers),
        (columns.data_source, question.source),
        (columns.extra_info, question.metadata),
    ):
        check_writable(value, f"{location}: '{name}'")
    return question


def question_to_row(question: Question, split: str, index: int) -> dict[str, Any]:
    """Write one question as a row of the Search-R1 / ZeroSearch parquet files.

    Args:
        question: what to write; its metadata must hold only what parquet can store.
        split: "train", "validation" or "test", kept in `extra_info`.
        index: position in the exported file, kept in `extra_info`.

    Returns:
        Columns `data_source`, `prompt`, `question`, `golden_answers`, `ability`, `reward_model`
        and `extra_info` (the metadata, then split and index).
    """
    answers = list(question.golden_answers)
    return {
        "data_source": question.source,
        "prompt": [{"role": "user", "content": question.text}],
        "question": question.text,
        "golden_answers": answers,
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
        "extra_info": {**question.metadata, "split": split, "index": index},
    }


def _wrong_type(location: str, field: str, value: object, wanted: str) -> InputError:
    return InputError(
        f"{location}: field '{field}' is {brief(value)} ({type(value).__name__}); it must be "
        f"{wanted}"
    )


def _text(row: Mapping[str, Any], field: str, location: str) -> str | None:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise _wrong_type(location, field, value, "a string")
    return value


def _question_text(row: Mapping[str, Any], columns: Columns, location: str) -> str:
    field = columns.question
    text = _text(row, field, location)
    if text is None:
        field = f"{columns.extra_info}.question"
        text = _text(row.get(columns.extra_info) or {}, "question", location) or None
    if text is None:
        field = columns.prompt
        text = _user_text(row.get(field), field, location)
    if text is None:
        raise InputError(
            f"{location}: no question: fields '{columns.question}' and '{columns.prompt}' are both "
            f"missing among {brief(sorted(row))}; rename the column, or name it with the source's "
            "own columns.question= (docs/data.md)"
        )
    if not text.strip():
        raise InputError(
            f"{location}: field '{field}' is {text!r:.80}, an empty question; "
            f"write the question or remove the row"
        )
    if tag := _TAG.search(text):
        raise InputError(
            f"{location}: field '{field}' is {text!r:.80}: with the tag {tag[0]} it is an "
            f"instruction, which is not to be asked; write the question alone into "
            f"'{columns.question}' or '{columns.extra_info}.question'"
        )
    return text.strip()


def _user_text(prompt: object, field: str, location: str) -> str | None:
    """Text of the last user message, which is the question where few-shot examples precede it."""
    wanted = "a list of {role, content} messages, one of them with role 'user'"
    if prompt is None or isinstance(prompt, str):
        if prompt is not None and re.match(r"\s*\[\s*\{", prompt):
            raise _wrong_type(location, field, prompt, f"{wanted}, and not its text")
        return prompt
    messages = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
    if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) for m in messages):
        raise _wrong_type(location, field, prompt, wanted)
    texts = [message.get("content") for message in messages if message.get("role") == "user"]
    text = _joined_parts(texts[-1]) if texts else None
    if text is None:
        raise _wrong_type(location, field, prompt, wanted)
    return text


def _joined_parts(content: object) -> str | None:
    """The text of a message, which chat APIs also write as parts `{type: text, text: ..}`."""
    parts = content.tolist() if isinstance(content, np.ndarray) else content
    if not isinstance(parts, list | tuple):
        return parts if isinstance(parts, str) else None
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    strings = [text for text in texts if isinstance(text, str)]
    return "".join(strings) if len(strings) == len(texts) else None


def _golden_answers(row: Mapping[str, Any], columns: Columns, location: str) -> tuple[str, ...]:
    field, value = columns.golden_answers, row.get(columns.golden_answers)
    for name in (columns.reward_model, REWARD_SPEC):
        if value is None:
            field, value = _ground_truth(row.get(name), name, location)
    if value is None:
        field, value = columns.answer, row.get(columns.answer)
    if value is None:
        raise InputError(
            f"{location}: no golden answers: fields '{columns.golden_answers}', "
            f"'{columns.reward_model}.ground_truth' and '{columns.answer}' are all missing among "
            f"{brief(sorted(row))}; rename the column, or name it with the source's own "
            "columns.golden_answers= or columns.answer= (docs/data.md)"
        )
    answers = tuple(text.strip() for text in _strings(value, field, location) if text.strip())
    if not answers:
        raise InputError(
            f"{location}: field '{field}' is {brief(value)}: no golden answer that is not empty; "
            f"give at least one or remove the row"
        )
    return answers


def _ground_truth(reward_model: object, field: str, location: str) -> tuple[str, object]:
    if reward_model is None:
        return field, None
    if not isinstance(reward_model, Mapping):
        raise _wrong_type(location, field, reward_model, "a mapping with key 'ground_truth'")
    field, value = f"{field}.ground_truth", reward_model.get("ground_truth")
    if isinstance(value, Mapping):
        if value.get("target") is None:
            raise _wrong_type(location, field, value, "a mapping with key 'target'")
        field, value = f"{field}.target", value["target"]
    return field, value


def _strings(value: object, field: str, location: str) -> list[str]:
    values = value.tolist() if isinstance(value, np.ndarray) else value
    # a zero-dimensional array has become its scalar, to be read like a bare string
    if isinstance(values, str):
        values = listed(values, field, location)
    items = list(values) if isinstance(values, (list, tuple)) else [values]
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        raise _wrong_type(
            location, field, value, "a string or a list of strings (quote numbers and dates)"
        )
    return [part for text in texts for part in text.split(ANSWER_SEPARATOR)]


def listed(text: str, field: str, location: str) -> list[str]:
    """One answer, or those of a list that was written as text: Python's or JSON's, as in CSV.

    Raises:
        InputError: it stands in brackets and is no list of quoted texts.
    """
    if not re.fullmatch(r"\s*\[.*\]\s*", text, re.DOTALL):
        return [text]
    if not _TEXT_OF_LIST.fullmatch(text.strip()):
        raise InputError(
            f"{location}: field '{field}' is {text!r:.80}, which looks like a list and is none of "
            'quoted texts with commas between them; write ["one", "two"], also for one answer '
            "that has brackets itself"
        )
    try:
        return [_unquoted(quoted) for quoted in re.findall(_TEXT, text, re.DOTALL)]
    except (ValueError, SyntaxError) as error:
        raise InputError(
            f"{location}: field '{field}' is {text!r:.80}, with a text that is neither JSON's nor "
            f"Python's ({error}); repair it"
        ) from error


def _unquoted(quoted: str) -> str:
    try:
        return json.loads(quoted)
    except ValueError:
        return ast.literal_eval(quoted)
