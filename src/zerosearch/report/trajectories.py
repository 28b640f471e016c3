"""The transcripts of runs for a page: an index that filters, and packed texts.

Texts are packed by file of transcripts, so that a page of thousands of trajectories opens at once
and unpacks what is looked at.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.core.shown import shown
from zerosearch.report.run_folder import TRANSCRIPTS, RunFolder, number
from zerosearch.report.token_values import shown_values

LONGEST = 20_000  # characters of one text; what is left out stays in the file
MOST_BYTES = 150_000_000  # of transcripts behind one page, which ends below 50 MB then
_ANSWER = 100  # characters of an answer in the index
_USEFUL, _NOISY, _UNKNOWN = 1, 2, 4  # qualities of a trajectory's searches, added up
COLUMNS = (
    *("run", "phase", "step", "group", "sibling", "question", "reward", "f1", "advantage"),
    *("stop", "quality", "searches", "answer", "tokens", "chunk", "row"),
)


@dataclass(slots=True)
class Numbered:
    """Values by the number that stands for them."""

    values: list[Any] = field(default_factory=list)
    _numbers: dict[Any, int] = field(default_factory=dict)

    def number(self, key: Any, value: Any = None) -> int:
        """The number of a key; a new one gets `value`, or itself, as its value."""
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(key if value is None else value)
        return self._numbers[key]


@dataclass(slots=True)
class Transcripts:
    """Trajectories as columns of equal length, and the packed texts that they refer to."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    phases: Numbered = field(default_factory=Numbered)
    stops: Numbered = field(default_factory=Numbered)
    questions: Numbered = field(default_factory=Numbered)  # text, golden answers
    chunks: list[str] = field(default_factory=list)  # base64 of gzip of JSON
    written: int = 0  # trajectories in all files

    @property
    def count(self) -> int:
        return len(self.columns["run"])

    def index(self) -> dict[str, Any]:
        """All but the texts, as plain values."""
        return {
            "columns": self.columns,
            "phases": self.phases.values,
            "stops": self.stops.values,
            "questions": self.questions.values,
            "count": self.count,
            "written": self.written,
        }


def read_transcripts(runs: Sequence[RunFolder], limit: int) -> Transcripts:
    """The trajectories of all runs, or an even choice of them.

    Where there are more than `limit`, or more than a page can hold, whole groups are chosen by
    their questions: those of evaluations alike in every evaluation and run, so that each has its
    counterparts.

    Raises:
        InputError: a line is no transcript; names it.
    """
    found = Transcripts()
    files = [
        (index, file)
        for index, run in enumerate(runs)
        for file in sorted((run.path / TRANSCRIPTS).rglob("*.jsonl"))
    ]
    sizes = [(file.stat().st_size, file.read_bytes().count(b"\n")) for _, file in files]
    found.written = sum(lines for _, lines in sizes)
    total_bytes = sum(size for size, _ in sizes)
    share = min(1.0, limit / max(1, found.written), MOST_BYTES / max(1, total_bytes))
    for run, file in files:
        texts = []
        for line, row in _rows(file):
            if share < 1.0 and not _is_chosen(row, share):
                continue
            _add(found, row, {"run": run, "chunk": len(found.chunks), "row": len(texts)}, file)
            texts.append(_texts(row, f"{file.name}, line {line}"))
        if texts:
            packed = json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode()
            compressed = gzip.compress(packed, compresslevel=6, mtime=0)
            found.chunks.append(base64.b64encode(compressed).decode())
    return found


def _rows(file: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number_of_line, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                missing = {"question", "turns", "step"} - {*row}
                if missing:
                    raise LookupError(missing)
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise InputError(
                    f"{file}, line {number_of_line}: no transcript ({line[:60]!r}); take it out"
                ) from error
            yield number_of_line, row


def _is_chosen(row: dict[str, Any], share: float) -> bool:
    """Drawn from the question, and of training also from the step, never from the sibling."""
    key = str(row.get("uid"))
    key += f"/{row['step']}" if row.get("phase") == "train" else ""
    return zlib.crc32(key.encode(errors="replace")) < share * 2**32


def _add(found: Transcripts, row: dict[str, Any], place: dict[str, int], file: Path) -> None:
    question, golden = shown(str(row["question"])), row.get("golden_answers") or []
    answer = row.get("answer")
    values = {
        **place,
        "phase": found.phases.number(shown(str(row.get("phase") or file.parent.name))),
        "step": int(row["step"]),
        "group": row.get("group", 0),
        "sibling": row.get("sibling", 0),
        "question": found.questions.number(
            (str(row.get("uid")), question),
            {"text": question, "golden": [shown(str(each)) for each in golden]},
        ),
        "reward": _rounded(row.get("reward")),
        "f1": _rounded(row.get("f1")),
        "advantage": _rounded(row.get("advantage")),
        "stop": found.stops.number(shown(str(row.get("stop_reason")))),
        "quality": _quality(row["turns"]),
        "searches": sum(turn.get("search") is not None for turn in row["turns"]),
        "answer": None if answer is None else shown(str(answer)[:_ANSWER]),
        "tokens": int(any(turn.get("tokens") is not None for turn in row["turns"])),
    }
    for name, value in values.items():
        found.columns[name].append(value)


def _rounded(value: Any) -> float | None:
    found = number(value)
    return None if found is None else round(found, 4)


def _quality(turns: Iterable[dict[str, Any]]) -> int:
    qualities = {search.get("noisy") for turn in turns if (search := turn.get("search"))}
    of = {False: _USEFUL, True: _NOISY, None: _UNKNOWN}
    return sum(bit for quality, bit in of.items() if quality in qualities)


def _texts(row: dict[str, Any], where: str) -> dict[str, Any]:
    """What is shown of a trajectory once it is looked at."""
    return {
        "noise": _rounded(row.get("noise_probability")),
        "error": None if row.get("error") is None else _cut(str(row["error"]), where),
        "turns": [
            {
                "text": _cut(str(turn.get("text") or ""), where),
                "read": None
                if turn.get("observation") is None
                else _cut(str(turn["observation"]), where),
                "tokens": [turn.get("sampled_tokens", 0), turn.get("inserted_tokens", 0)],
                **_values(turn),
                **_search(turn.get("search")),
            }
            for turn in row["turns"]
        ],
    }


def _values(turn: dict[str, Any]) -> dict[str, Any]:
    text, as_shown = str(turn.get("text") or ""), partial(shown, lines=True)
    found = shown_values(turn.get("tokens"), text, LONGEST, as_shown)
    return {} if found is None else {"values": found}


def _search(search: dict[str, Any] | None) -> dict[str, Any]:
    if search is None:
        return {}
    found = len(search.get("documents") or [])
    return {
        "noisy": search.get("noisy"),
        "found": found,
        "asked": search.get("requested", found),
        "cached": bool(search.get("cached")),
    }


def _cut(text: str, where: str) -> str:
    if len(text) > LONGEST:
        left = len(text) - LONGEST
        text = f"{text[:LONGEST]}\n[{left:,} more characters: {where}]"
    return shown(text, lines=True)
