"""JSON of files that others wrote: what is wrong with it is said in one sentence, with the line."""

from __future__ import annotations

import json
import re
import reprlib
import sys
from typing import Any

from zerosearch.core.errors import InputError

MAX_DEPTH = 64  # of what is kept of a row; files of questions nest five deep
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxlist, _SHOWN.maxdict = 3, 4, 4
_SHOWN.maxstring = _SHOWN.maxother = 80


def parse_json(text: str, file: str, line: int = 1) -> Any:
    """The value of a JSON text.

    Args:
        text: all of a file, or one of its lines.
        file: its name, for errors.
        line: of the file on which the text begins.

    Raises:
        InputError: it is no JSON, nested too deeply, or holds a number of too many digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        start = text[error.pos - error.colno + 1 :].partition("\n")[0]
        raise InputError(
            f"{file}, line {line + error.lineno - 1}: not valid JSON ({error.msg}, column "
            f"{error.colno}): {start!r:.80}; write one object per line, or one array of objects"
        ) from error
    except RecursionError as error:
        at = line + text.count("\n", 0, _first_deep(text))
        raise InputError(
            f"{file}, line {at}: lists or objects stand in one another more than {MAX_DEPTH} "
            "deep; a row has a question and its answers: repair or remove it"
        ) from error
    except ValueError as error:  # of `int`
        digits = sys.get_int_max_str_digits()
        found = re.search(rf"\d{{{digits + 1}}}", text)
        at = line + text.count("\n", 0, found.start() if found else 0)
        raise InputError(
            f"{file}, line {at}: a number has more than {digits} digits; put quotes around it, or "
            "remove it"
        ) from error


def brief(value: object) -> str:
    """A value for an error, however long it is or deep."""
    text = _SHOWN.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_writable(value: object, what: str) -> None:
    """Refuse what cannot be written down again, sent or copied.

    Args:
        value: mappings, lists and scalars.
        what: it is, for the error.

    Raises:
        InputError: a text holds half a character, or the value is deeper than `MAX_DEPTH`.
    """
    left = [(value, 0)]  # not recursive: the value may be deeper than the stack
    while left:
        item, depth = left.pop()
        if depth > MAX_DEPTH:
            raise InputError(f"{what} is nested more than {MAX_DEPTH} deep; remove what is nested")
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{what} is {brief(value)}: it holds half a character (one \\ud.. of a pair) "
                    f"at {error.start}; repair it or remove the row"
                ) from error
        elif isinstance(item, dict):
            left += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple):
            left += [(part, depth + 1) for part in item]


def _first_deep(text: str) -> int:
    """Where brackets first stand deeper than `MAX_DEPTH`, those in strings left out."""
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return token.start()
        elif token[0] in "]}":
            depth -= 1
    return 0
