"""Searches that an agent made with a real engine: what simulation tuning starts from.

Two forms are read: the episodes that `zerosearch collect` writes, one per line with all
its searches, and logs of others with a search per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeGuard, TypeVar

from zerosearch.core.errors import InputError
from zerosearch.data.json_text import check_writable
from zerosearch.data.readers import local_files
from zerosearch.data.rows import listed
from zerosearch.types import Document, Shown

# Names of fields in logs of others, by ours.
ALIASES = {
    "question": ("question",),
    "golden_answers": ("golden_answers", "golden_answer", "answers", "ground_truth"),
    "query": ("query", "search_query"),
    "documents": ("documents", "results"),
    "turn": ("turn",),
    "answer": ("answer", "final_answer"),
    "correct": ("correct", "judged_correct"),
}


@dataclass(kw_only=True, slots=True, frozen=True)
class RecordedSearch:
    """One search of an episode: the query and what the engine returned."""

    turn: int  # of the episode, from 0
    query: str
    documents: tuple[Document, ...]
    shown: Shown | None = None  # what the agent read of them; None: not recorded

    @property
    def read(self) -> tuple[Document, ...]:
        """The documents that the agent read, all where that was not recorded."""
        if self.shown is None:
            return self.documents
        cut_at = self.shown.cut_at  # of a cut one the words around it count, too: a few characters
        read = self.documents[: self.shown.documents]
        return tuple(replace(each, text=each.text[:cut_at]) for each in read)


@dataclass(kw_only=True, slots=True, frozen=True)
class RecordedEpisode:
    """One attempt at a question, with all its searches."""

    id: str  # of this attempt, unique in a data set
    question: str
    golden_answers: tuple[str, ...]
    searches: tuple[RecordedSearch, ...]
    answer: str | None  # None: none was given
    correct: bool
    # What the agent wrote, a text per turn in the tags of the policy; empty: not recorded.
    texts: tuple[str, ...] = ()
    place: str = field(default="", compare=False, repr=False)  # file and row it was read from

    def as_row(self) -> dict[str, Any]:
        """As JSON values, without the place."""
        row = asdict(self)
        del row["place"]
        return row


def read_episodes(path: str) -> list[RecordedEpisode]:
    """Read recorded searches in either form.

    Args:
        path: .jsonl, .jsonl.gz, .json or .parquet file, or a pattern of several. In logs with a
            search per row, an episode goes on while question and answer stay the same and the turn
            rises.

    Returns:
        In the order of the file.

    Raises:
        InputError: no such file, or a row that lacks a field or holds another kind of value; names
            place and field.
    """
    files = local_files(path)
    if files is None:
        raise InputError(f"{path!r} is no file; give a .jsonl, .jsonl.gz, .json or .parquet file")
    rows = [(place, row) for file in files for _, place, row in file.read_all()]
    if not rows:
        raise InputError(f"{path} holds no searches; check the file")
    if "searches" in rows[0][1]:
        return [_episode(row, place) for place, row in rows]
    return [_joined(part, number) for number, part in enumerate(_by_episode(rows))]


def _episode(row: Mapping[str, Any], place: str) -> RecordedEpisode:
    searches = row.get("searches")
    if not _is_list(searches) or not all(isinstance(each, Mapping) for each in searches):
        raise InputError(
            f"{place}: 'searches' is {searches!r:.60}; give a list with an object for each search"
        )
    if not isinstance(row.get("id"), str):
        raise InputError(f"{place}: 'id' is {row.get('id')!r:.60}; it must be a text")
    return RecordedEpisode(
        id=_whole(row["id"], f"{place}: 'id'"),
        question=_text(row, "question", place),
        golden_answers=_answers(row, place),
        searches=tuple(_search(each, place) for each in searches),
        answer=_answer(row, place),
        correct=_correct(row, place),
        texts=_texts(row, place),
        place=place,
    )


def _by_episode(
    rows: Sequence[tuple[str, Mapping[str, Any]]],
) -> Iterator[list[tuple[str, Mapping[str, Any]]]]:
    part: list[tuple[str, Mapping[str, Any]]] = []
    for place, row in rows:
        if part:
            _, last = part[-1]
            same = all(_field(row, name) == _field(last, name) for name in ("question", "answer"))
            if not same or _turn(row, place) <= _turn(last, place):
                yield part
                part = []
        part.append((place, row))
    yield part


def _joined(part: Sequence[tuple[str, Mapping[str, Any]]], number: int) -> RecordedEpisode:
    place, first = part[0]
    return RecordedEpisode(
        id=f"log:{number}",
        question=_text(first, "question", place),
        golden_answers=_answers(first, place),
        searches=tuple(_search(row, place) for place, row in part),
        answer=_answer(first, place),
        correct=_correct(first, place),
        place=place,
    )


def _search(row: Mapping[str, Any], place: str) -> RecordedSearch:
    documents = _field(row, "documents")
    if not _is_list(documents):
        raise InputError(f"{place}: 'documents' is {documents!r:.60}; it must be a list")
    return RecordedSearch(
        turn=_turn(row, place),
        query=_text(row, "query", place),
        documents=tuple(_document(each, place) for each in documents),
        shown=_shown(row, place),
    )


def _shown(row: Mapping[str, Any], place: str) -> Shown | None:
    value = row.get("shown")
    if value is None:
        return None
    known = isinstance(value, Mapping) and _is_count(value.get("documents"))
    if not known or not (value.get("cut_at") is None or _is_count(value["cut_at"])):
        raise InputError(
            f"{place}: 'shown' is {value!r:.60}; give the numbers 'documents' and 'cut_at', 0 or "
            "more, or leave it out where it was not recorded"
        )
    return Shown(documents=value["documents"], cut_at=value.get("cut_at"))


def _document(value: Any, place: str) -> Document:
    if isinstance(value, str):
        return Document(text=value)
    title = (value.get("title") or "") if isinstance(value, Mapping) else None
    if isinstance(title, str) and isinstance(value.get("text"), str):
        return Document(title=title, text=value["text"])
    raise InputError(
        f"{place}: a document is {value!r:.60}; give a text, or an object with the texts 'text' "
        "and 'title'"
    )


def _turn(row: Mapping[str, Any], place: str) -> int:
    turn = _field(row, "turn")
    if not _is_count(turn):
        raise InputError(f"{place}: 'turn' is {turn!r:.60}; it must be a number, 0 or more")
    return turn


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    value = _field(row, name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: '{name}' is {value!r:.60}; it must be a text")
    return _whole(value, f"{place}: '{name}'")


def _answer(row: Mapping[str, Any], place: str) -> str | None:
    answer = _field(row, "answer")
    if not isinstance(answer, str | None):
        raise InputError(f"{place}: 'answer' is {answer!r:.60}; give a text, or null for none")
    return _whole(answer, f"{place}: 'answer'")


def _correct(row: Mapping[str, Any], place: str) -> bool:
    correct = _field(row, "correct")
    if correct is not None and correct not in (False, True):  # 0 and 1 are equal to them
        raise InputError(f"{place}: 'correct' is {correct!r:.60}; give true or false")
    return bool(correct)


def _texts(row: Mapping[str, Any], place: str) -> tuple[str, ...]:
    texts = row.get("texts") or ()
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{place}: 'texts' is {texts!r:.60}; give a list with the text of each turn, or leave "
            "it out where the texts were not recorded"
        )
    return tuple(_whole(text, f"{place}: 'texts'") for text in texts)


def _answers(row: Mapping[str, Any], place: str) -> tuple[str, ...]:
    value = _field(row, "golden_answers")
    field = f"{place}: 'golden_answers'"
    answers = listed(value, "golden_answers", place) if isinstance(value, str) else value
    texts = isinstance(answers, list | tuple) and all(
        isinstance(each, str | int | float) for each in answers
    )
    if not texts or not answers:
        raise InputError(f"{field} is {value!r:.60}; give a text or a list")
    return tuple(_whole(str(each), field) for each in answers)


T = TypeVar("T", str, str | None)


def _whole(value: T, what: str) -> T:
    """A text as it is, if it can be encoded."""
    check_writable(value, what)
    return value


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _field(row: Mapping[str, Any], name: str) -> Any:
    return next((row[key] for key in ALIASES[name] if row.get(key) is not None), None)
