"""Recorded searches in both forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zerosearch.tuning.records import RecordedEpisode, RecordedSearch, read_episodes
from zerosearch.types import Document, Shown


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def search(turn: int, question: str = "Who?", answer: str = "Ada", **fields: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "question": question,
        "golden_answer": "Ada",
        "turn": turn,
        "query": f"query {turn}",
        "documents": [{"title": "T", "text": "text"}, "plain"],
        "final_answer": answer,
        "judged_correct": True,
    }
    return usual | fields


def test_episodes_come_back_as_they_were_written(tmp_path: Path) -> None:
    episodes = [
        RecordedEpisode(
            id=f"q:{number}/0",
            question="Who?",
            golden_answers=("Ada", "A."),
            searches=tuple(
                RecordedSearch(
                    turn=turn,
                    query="x",
                    documents=(Document(text="t", title="T"),),
                    shown=(None, Shown(documents=1), Shown(documents=1, cut_at=9))[turn],
                )
                for turn in range(number)
            ),
            answer=None if number else "Ada",
            correct=not number,
            texts=tuple(f"<search> {turn} </search>" for turn in range(number)),
        )
        for number in range(4)
    ]
    path = write(tmp_path / "episodes.jsonl", [each.as_row() for each in episodes])
    assert read_episodes(path) == episodes


def test_a_log_with_a_search_per_row_is_cut_into_episodes(tmp_path: Path) -> None:
    rows = [search(1), search(2), search(1), search(1, "What?"), search(2, "What?", "B")]
    found = read_episodes(write(tmp_path / "log.jsonl", rows))
    assert [len(each.searches) for each in found] == [2, 1, 1, 1]
    assert [each.question for each in found] == ["Who?", "Who?", "What?", "What?"]
    assert len({each.id for each in found}) == 4
    assert found[0].searches[1].query == "query 2"
    assert found[0].searches[0].documents == (
        Document(title="T", text="text"),
        Document(text="plain"),
    )
    assert (found[0].golden_answers, found[0].answer, found[0].correct) == (("Ada",), "Ada", True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": " "}, "'query' is ' '; it must be a text"),
        ({"question": 7}, "'question' is 7"),
        ({"golden_answer": None}, "'golden_answers' is None; give a text or a list"),
        ({"turn": "first"}, "'turn' is 'first'; it must be a number"),
        ({"documents": "text"}, "'documents' is 'text'; it must be a list"),
        ({"shown": 3}, "'shown' is 3; give the numbers 'documents' and 'cut_at'"),
        ({"documents": [{"title": "no text"}]}, "a document is {'title': 'no text'}"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "log.jsonl", [search(1, "Before?"), search(2) | changes])
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: ") as caught:
        read_episodes(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("texts", ["<answer> Ada </answer>", [7]])
def test_texts_are_a_list_of_texts(tmp_path: Path, texts: Any) -> None:
    row = {"id": "q:0/0", "question": "Who?", "golden_answers": ["Ada"], "searches": []}
    path = write(tmp_path / "episodes.jsonl", [row, row | {"texts": texts}])
    with pytest.raises(ValueError, match=r"line 2: 'texts' is .*give a list"):
        read_episodes(path)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no searches"):
        read_episodes(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(ValueError, match="'some/name' is no file"):
        read_episodes("some/name")
