"""Text from outside made fit to be shown: in a terminal, a log, or a table.

Documents, replies, questions and files hold whatever their authors put there. Sequences after an
escape character can rename a window, fill the clipboard or overwrite what was said before, marks of
writing direction make text read as another, a cell that starts with `=` is a formula, and a line
break begins a new line of a log. `shown` is applied wherever such text leaves for people.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

# Control characters but tab and line feed, marks of direction, separators of lines that only some
# programs know, halves of surrogate pairs.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MARKUP = re.compile(r"[!#$&()*+\-.:<=>@\[\\\]^_`{|}~]")  # that may begin markup, in any dialect
_FORMULA = re.compile(r"'*\s*[=+\-@]")
_CONTINUED = "\n    "  # the message of a log goes on


def shown(text: str, *, lines: bool = False) -> str:
    r"""Text in which what would act is written out, as `\x1b` or `\u202e`.

    Args:
        text: from outside.
        lines: keep line breaks; else they are spaces.
    """
    return _UNSAFE.sub(_written, text if lines else text.replace("\n", " "))


def _written(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shown_json(value: Any) -> str:
    """A line of JSON that a terminal shows as it is; it says the same."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def shown_markdown(text: str) -> str:
    """Text as Markdown that shows it as it is: no markup, link, picture or HTML comes of it.

    Lines stay, and how far they are indented; a list of them is no paragraph yet.
    """
    lines = shown(text, lines=True).expandtabs(4).split("\n")
    return "\n".join(map(_literal_line, lines))


def _literal_line(line: str) -> str:
    text = line.lstrip(" ")
    written = _MARKUP.sub(lambda match: f"&#{ord(match[0])};", text)
    return "&nbsp;" * (len(line) - len(text)) + written


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: no spreadsheet takes a text for a formula; numbers stay."""
    if not isinstance(value, str):
        return value
    text = shown(value, lines=True)
    return f"'{text}" if _FORMULA.match(text) else text


def from_csv_cell(text: Any) -> Any:
    """The text of which `csv_cell` made this."""
    quoted = isinstance(text, str) and text[:1] == "'" and _FORMULA.match(text)
    return text[1:] if quoted else text


def write_csv(file: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows with equal fields below their names, through `csv_cell`; nothing where there is none."""
    writer = csv.writer(file, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(map(csv_cell, row))
        writer.writerow(map(csv_cell, row.values()))


class _Record(logging.LogRecord):
    """A record whose message cannot act, nor pose as another record."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if self.exc_info and self.exc_info[0] is not None:
            said = "".join(traceback.format_exception(*self.exc_info)).rstrip("\n")
            self.exc_text = shown(said, lines=True)  # formatters take it where it is there

    def getMessage(self) -> str:
        return shown(super().getMessage(), lines=True).replace("\n", _CONTINUED)


def clean_logs() -> None:
    """From now on, every log of this process shows text from outside as text."""
    logging.setLogRecordFactory(_Record)
