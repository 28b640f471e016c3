r"""Passage corpora in the Search-R1 format: one JSON object per line.

A row is `{"id": "0", "contents": "\"Title\"\ntext"}` or, as other collections have it,
`{"id": "0", "title": "Title", "text": "text"}`, in a `.jsonl` or `.jsonl.gz` file. A corpus with
one bad row is refused whole: an index silently short of a passage would change every score
measured on it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.data.json_lines import JsonLines
from zerosearch.data.json_text import brief, parse_json

SUFFIXES = (".jsonl", ".jsonl.gz")
_FORM = r'; a passage is {"id": "0", "contents": "\"Title\"\ntext"}'


@dataclass(kw_only=True, slots=True, frozen=True)
class Passage:
    """One passage of a corpus; `title` is empty where the row has no title line.

    Raises:
        InputError: a field is not text, `id` or `text` is empty, or `title` has several lines.
    """

    id: str
    title: str
    text: str

    def __post_init__(self) -> None:
        for name in ("id", "title", "text"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InputError(f"field '{name}' is {value!r}; it must be a string")
            if name != "title" and not value.strip():
                raise InputError(f"field '{name}' is empty; fill it or delete the row")
            _check_encodable(name, value)
        if "\n" in self.title:
            raise InputError(f"field 'title' is {self.title!r}; a title has only one line")


def read_corpus(path: str | Path) -> list[Passage]:
    """Read a whole corpus, in file order.

    Args:
        path: a `.jsonl` or `.jsonl.gz` file. Blank lines are skipped.

    Returns:
        Passages with surrounding white space of title and text removed.

    Raises:
        InputError: the file is missing, damaged or empty, or a row is bad: not JSON, a field
            missing or of the wrong type, a passage without text, an id seen before. The message
            names file, line and field.
    """
    passages: list[Passage] = []
    first_line: dict[str, int] = {}
    for number, passage in _numbered_passages(_checked_path(path)):
        if passage.id in first_line:
            raise InputError(
                f"{path}, line {number}: field 'id' is {passage.id!r}, used before on line "
                f"{first_line[passage.id]}; give each passage its own id"
            )
        first_line[passage.id] = number
        passages.append(passage)
    if not passages:
        raise InputError(f"{path}: no passages in the file; a corpus needs at least one row")
    return passages


def count_passages(path: str | Path) -> int:
    """Passages of a corpus, each checked but none kept; an id that comes twice is not seen.

    Raises:
        InputError: as of `read_corpus`.
    """
    return sum(1 for _ in _numbered_passages(_checked_path(path)))


def write_corpus(path: str | Path, passages: Iterable[Passage]) -> None:
    """Write a corpus that `read_corpus` reads back; the same passages always give the same bytes.

    The file appears under its name only when it is whole.

    Args:
        path: target ending in `.jsonl` or `.jsonl.gz`; its folder is created.
        passages: in the order of the file.

    Raises:
        InputError: wrong suffix, or an id occurs twice.
        FileError: the disk.
    """
    path = Path(path)
    _check_suffix(path)
    with replacing(path) as raw:
        if path.name.endswith(".gz"):
            # A time stamp in the gzip header would make two equal corpora differ in bytes.
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                _write_rows(path, passages, cast(IO[bytes], packed))
        else:
            _write_rows(path, passages, raw)


def split_contents(contents: str) -> tuple[str, str]:
    """Split the `contents` of a row into title and text.

    The first line is the title when it stands in double quotes and another line follows; quotes
    inside the title are its own. Otherwise all of `contents` is text and the title is empty.

    Returns:
        Title and text without surrounding white space; either may be empty.
    """
    first, newline, rest = contents.lstrip().partition("\n")
    first = first.strip()
    if newline and len(first) >= 2 and first.startswith('"') and first.endswith('"'):
        return first[1:-1].strip(), rest.strip()
    return "", contents.strip()


def join_contents(title: str, text: str) -> str:
    """The `contents` that `split_contents` splits into the same title and text."""
    # An untitled text may itself open with a quoted line: an empty title line keeps that line text.
    if title or split_contents(text) != ("", text.strip()):
        return f'"{title}"\n{text}'
    return text


def title_and_text(row: Mapping[str, Any]) -> tuple[str, str]:
    """Title and text of a document in either form: `contents`, or `text` and perhaps `title`.

    Raises:
        InputError: neither is there, or a value is no string.
    """
    fields = ("contents",) if row.get("contents") is not None else ("text", "title")
    body, title = row.get(fields[0]), row.get("title") if len(fields) > 1 else None
    if body is None:
        said = "is None" if "contents" in row else "is missing"
        raise InputError(
            f"field 'contents' {said}, and so is 'text', among {brief(sorted(row))}{_FORM}"
        )
    if not isinstance(body, str):
        raise InputError(f"field '{fields[0]}' is {brief(body)}; it must be a string")
    if title is None:
        return split_contents(body)
    if not isinstance(title, str):
        raise InputError(f"field 'title' is {brief(title)}; it must be a string")
    return " ".join(title.split()), body.strip()


def _parse_row(line: bytes, file: str, number: int) -> Passage:
    try:
        row: Any = parse_json(line.decode("utf-8-sig").rstrip(), file, number)
    except UnicodeDecodeError as error:
        raise InputError(f"{file}, line {number}: not UTF-8 ({error}); save it as UTF-8") from error
    try:
        return _passage(row)
    except InputError as error:
        raise InputError(f"{file}, line {number}: {error}") from error


def _passage(row: Any) -> Passage:
    if not isinstance(row, dict):
        raise InputError(f"row is a {type(row).__name__}; write an object with 'id' and 'contents'")
    if "id" not in row:
        raise InputError(f"field 'id' is missing; the row has {brief(sorted(row))}{_FORM}")
    identity = row["id"]
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise InputError(f"field 'id' is {brief(identity)}; it must be a string or a whole number")
    title, text = title_and_text(row)
    if not text:
        field = "text" if row.get("contents") is None else "contents"
        raise InputError(
            f"field '{field}' is {brief(row[field])}: no text; add it or delete the row"
        )
    return Passage(id=str(identity), title=title, text=text)


def _write_rows(path: Path, passages: Iterable[Passage], file: IO[bytes]) -> None:
    seen: set[str] = set()
    for passage in passages:
        if passage.id in seen:
            raise InputError(f"{path}: field 'id' is {passage.id!r} in two passages; rename one")
        seen.add(passage.id)
        row = {"id": passage.id, "contents": join_contents(passage.title, passage.text)}
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _numbered_passages(path: Path) -> Iterator[tuple[int, Passage]]:
    number = 0
    try:
        for number, line in enumerate(JsonLines(path), start=1):
            if line.strip():
                yield number, _parse_row(line, str(path), number)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}, after line {number}: the file cannot be read ({error}); get a whole copy"
        ) from error


def _checked_path(path: str | Path) -> Path:
    path = Path(path)
    _check_suffix(path)
    if not path.is_file():
        raise InputError(f"corpus file {path} does not exist; give the path of a .jsonl[.gz] file")
    return path


def _check_suffix(path: Path) -> None:
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"corpus file {path} must end in {' or '.join(SUFFIXES)}")


def _check_encodable(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON may carry half a surrogate pair; it would fail only later, inside a tokenizer.
        raise InputError(
            f"field '{name}' holds half a character ({error.reason}) at {error.start}; repair it"
        ) from error
