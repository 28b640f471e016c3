"""Verdicts become rows: what is in them, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from zerosearch.tuning.judges import Case
from zerosearch.tuning.row_maker import JudgedSearch, RowMaker, shorten
from zerosearch.types import Document


def search(*useful: bool | None, name: str = "s", **fields: Any) -> JudgedSearch:
    usual: dict[str, Any] = {"question": "Where?", "golden_answers": ("Peru",), "query": "q"}
    cases = tuple(
        Case(document=Document(title=f"T{n}", text=f"{name} text {n}"), **(usual | fields))
        for n in range(len(useful))
    )
    return JudgedSearch(id=name, cases=cases, useful=useful)


def made(searches: list[JudgedSearch], **fields: Any) -> dict[str, list[str]]:
    rows = RowMaker(**fields).make(searches)
    return {row["id"]: [each["text"][-1] for each in row["documents"]] for row in rows}


def test_rows_of_every_number_and_quality() -> None:
    judged = search(False, False, True, None, False)
    assert made([judged], top_k=[1, 2, 3]) == {
        "s/useful/1": ["2"],  # none of the first suffices: the first that does takes its place
        "s/noisy/1": ["0"],
        "s/useful/2": ["0", "2"],
        "s/noisy/2": ["0", "1"],
        "s/useful/3": ["0", "1", "2"],
        "s/noisy/3": ["0", "1", "4"],
    }


def test_a_search_with_too_few_documents_gives_no_row_unless_allowed() -> None:
    searches = [search(True, False, False, name="a"), search(False, True, True, name="b")]
    assert set(made(searches, top_k=[2])) == {"a/useful/2", "a/noisy/2", "b/useful/2"}
    fewer = made(searches, top_k=[2], allow_fewer=True)
    assert fewer["b/noisy/1"] == ["0"] and len(fewer) == 4


def test_a_row_says_all_that_a_prompt_needs() -> None:
    [row, _] = RowMaker().make([search(True, False, golden_answers=("Peru", "PE"))])
    assert row == {
        "id": "s/useful/1",
        "question": "Where?",
        "golden_answers": ["Peru", "PE"],
        "query": "q",
        "quality": "useful",
        "documents": [{"title": "T0", "text": "s text 0"}],
    }


def test_equal_rows_are_made_once() -> None:
    searches = [search(True, False), search(True, False)]
    assert len(RowMaker().make(searches)) == 2
    assert len(RowMaker().make([*searches, search(True, False, query="other")])) == 4


@pytest.mark.parametrize("useful", [True, False])
def test_rows_of_one_quality_alone_are_refused(useful: bool) -> None:
    missing = "noisy" if useful else "useful"
    with pytest.raises(ValueError, match=f"1 searches give no {missing} row"):
        RowMaker().make([search(useful, useful)])


def test_whole_questions_are_held_out() -> None:
    searches = [search(True, False, name=str(n), question=f"Q{n // 2}") for n in range(400)]
    maker = RowMaker(validation_share=0.25)
    train, validation = maker.split(maker.make(searches))
    held_out = {row["question"] for row in validation}
    assert 30 <= len(held_out) <= 70 and not held_out & {row["question"] for row in train}
    few = maker.split(maker.make(searches[:40]))
    assert {row["question"] for row in few[1]} <= held_out, "more searches move no question"


TEXT = "One two three. Four five Peru. Six seven. Eight nine ten eleven."


@pytest.mark.parametrize(
    ("words", "keep", "expected"),
    [
        (20, (), TEXT),
        (6, (), "One two three. Four five Peru."),
        (6, ("Peru",), "One two three. Four five Peru."),
        (5, ("Peru",), "Four five Peru. Six seven."),
        (3, ("eleven",), "Eight nine ten eleven."),
        (1, (), "One two three."),
        (7, ("nowhere",), "One two three. Four five Peru."),
    ],
)
def test_documents_are_cut_at_sentences_around_the_answer(
    words: int, keep: tuple[str, ...], expected: str
) -> None:
    assert shorten(TEXT, words, keep) == expected


def test_only_useful_documents_are_cut_around_the_answer() -> None:
    text = "Nothing at all here. In Peru it is."
    cases = tuple(
        Case(
            question="Q",
            golden_answers=("Peru",),
            query="q",
            document=Document(text=text + " " * n),
        )
        for n in range(2)
    )
    judged = JudgedSearch(id="s", cases=cases, useful=(True, False))
    useful, noisy = RowMaker(max_words=5).make([judged])
    assert useful["documents"][0]["text"] == "In Peru it is."
    assert noisy["documents"][0]["text"] == "Nothing at all here."


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": []}, r"rows\.top_k=\[\]"),
        ({"top_k": [0]}, r"rows\.top_k=\[0\]"),
        ({"max_words": 2}, r"rows\.max_words=2"),
        ({"validation_share": 0.0}, r"rows\.validation_share=0\.0"),
    ],
)
def test_settings_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowMaker(**fields)
