"""Which variable of a simulator's prompt stands in a slot."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

from zerosearch.tuning.template.forms import Slot

NAMES = ("query", "question", "golden_answers", "top_k", "words_per_document")
NUMBER_WORDS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
]
SAME = 0.9  # share of rows whose field agrees with a slot that makes it that field's
Fields = Mapping[str, str | list[str]]

_KEYWORDS = {
    "query": r"quer(?:y|ies)|key ?words?|search(?:ed|es|ing)? (?:terms?|for)",
    "question": r"questions?|problems?",
    "golden_answers": r"answers?|ground[ _]truth|solution",
}
_COUNTED = {
    "top_k": r"doc(?:ument)?s?|results?|passages?|pages?|snippets?",
    "words_per_document": r"words?",
}
_SEPARATORS = ("<|answer_split|>", " | ", "; ", " / ", "\n", ", ")


def name_slots(
    slots: Sequence[Slot], fields: Sequence[Fields], given: Mapping[int, str]
) -> dict[int, str]:
    """Slot number -> variable, for the slots where it can be told.

    Args:
        slots: of one form.
        fields: what each fitting row says of itself, beside its prompt.
        given: what the user has said; goes over everything else.
    """
    names: dict[int, str] = {}
    for slot in slots:
        name = given.get(slot.number) or _by_fields(slot, fields) or _by_number(slot)
        name = name or _by_context(slot.before)
        if name:
            names[slot.number] = name
    for slot in slots:
        equal = [other for other in slots if other.values == slot.values and other.number in names]
        if slot.number not in names and equal:
            names[slot.number] = names[equal[0].number]
    return names


def conflicts(slots: Sequence[Slot], names: Mapping[int, str]) -> list[str]:
    """Names that stand for two slots with different values, in words."""
    found = []
    for slot in slots:
        for other in slots[: slots.index(slot)]:
            same_name = names.get(slot.number) == names.get(other.number)
            if same_name and slot.number in names and slot.values != other.values:
                found.append(
                    f"slots {other.number} and {slot.number} both look like "
                    f"{names[slot.number]}, but differ"
                )
    return found


def _by_fields(slot: Slot, fields: Sequence[Fields]) -> str | None:
    for name in ("query", "question", "golden_answers"):
        pairs = [
            (value, row[name])
            for value, row in zip(slot.values, fields, strict=True)
            if value is not None and name in row
        ]
        if pairs and sum(_agrees(value, known) for value, known in pairs) >= SAME * len(pairs):
            return name
    return None


def _agrees(value: str, known: str | list[str]) -> bool:
    if isinstance(known, str):
        return value.strip(" ?") == known.strip(" ?")
    return bool(known) and all(answer in value for answer in known[:1])


def _by_number(slot: Slot) -> str | None:
    if not slot.present or not all(number_of(value) is not None for value in slot.present):
        return None
    places = {
        name: match.start()
        for name, pattern in _COUNTED.items()
        if (match := re.search(rf"\b(?:{pattern})\b", slot.after, re.IGNORECASE))
    }
    return min(places, key=lambda name: places[name]) if places else None


def _by_context(before: str) -> str | None:
    """The variable whose keyword is the last one before the slot."""
    places: dict[str, int] = {}
    for name, pattern in _KEYWORDS.items():
        for match in re.finditer(rf"\b(?:{pattern})\b", before, re.IGNORECASE):
            places[name] = match.end()
    return max(places, key=lambda name: places[name]) if places else None


def number_of(text: str) -> int | None:
    """A number in digits or, up to twenty, in words; None for any other text."""
    if text.isascii() and text.isdigit():
        return int(text)
    return NUMBER_WORDS.index(text) if text in NUMBER_WORDS else None


# -- golden answers -------------------------------------------------------------------------------


def as_python_list(value: str) -> list[str] | None:
    """Answers of a text that is the inside of a printed Python list: `'Lima', 'Callao'`."""
    try:
        answers = ast.literal_eval(f"[{value}]")
    except (SyntaxError, ValueError):
        return None
    texts = all(isinstance(answer, str) for answer in answers)
    return answers if texts and repr(answers)[1:-1] == value else None


def find_separator(values: Sequence[str], known: Sequence[str | list[str] | None]) -> str | None:
    """What stands between several golden answers; None where no row has several.

    Args:
        values: the slot's, row by row.
        known: the rows' own golden answers, where they carry any.
    """
    for value, answers in zip(values, known, strict=True):
        if isinstance(answers, list) and len(answers) > 1 and value.startswith(answers[0]):
            end = value.find(answers[1], len(answers[0]))
            if end >= 0 and value[len(answers[0]) : end].join(answers) == value:
                return value[len(answers[0]) : end]
    return next((sep for sep in _SEPARATORS if any(sep in value for value in values)), None)
