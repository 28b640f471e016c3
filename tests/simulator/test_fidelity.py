"""What is measured of searches: answers where they belong or not, lengths, repetitions."""

from __future__ import annotations

import pytest

from zerosearch.core.text import mentions
from zerosearch.simulator.fidelity import SearchMeasurement, fidelity_of, measure_search
from zerosearch.types import Document, SearchResult


def result(*texts: str, noisy: bool | None = False, requested: int = 2, **more) -> SearchResult:
    documents = tuple(Document(text=text) for text in texts)
    return SearchResult(documents=documents, requested=requested, noisy=noisy, **more)


def seen(*texts: str, answers: tuple[str, ...] = ("Lima",), **more) -> SearchMeasurement:
    return measure_search(result(*texts, **more), answers)


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("The capital is LIMA.", ("Lima",), True),
        ("Limassol lies on Cyprus", ("Lima",), False),
        ("Port-au-Prince, Haiti", ("Port au Prince", "Port-au-Prince"), True),
        ("in China", ("IN",), True),
        ("China", ("IN",), False),
        ("anything", ("The", "?!", ""), False),
        ("anything", (), False),
    ],
)
def test_an_answer_is_looked_for_as_whole_words(
    text: str, answers: tuple[str, ...], found: bool
) -> None:
    assert mentions(text, answers) is found


def test_answers_are_counted_where_they_should_be_and_where_they_should_not() -> None:
    metrics = fidelity_of(
        [
            seen("Lima it is", "in Lima"),
            seen("no idea", "none"),
            seen("of Lima", "x", noisy=True),
            seen("y", "z", noisy=True),
            seen("Lima", noisy=None),  # an engine that chooses no quality
        ]
    )
    assert metrics["answer_in_useful"] == metrics["answer_in_noisy"] == 0.5
    assert metrics["answer_documents_useful"] == 0.5
    assert metrics["answer_documents_noisy"] == 0.25
    assert metrics["noisy"] == 0.5


@pytest.mark.parametrize("answers", [(), ("yes",), ("No",), ("the",)])
def test_what_cannot_be_looked_for_is_left_out(answers: tuple[str, ...]) -> None:
    metrics = fidelity_of([seen("yes and no", answers=answers), seen("Lima")])
    assert metrics["answer_in_useful"] == 1.0
    assert "answer_in_useful" not in fidelity_of([seen("yes and no", answers=answers)])


def test_documents_are_counted_and_measured() -> None:
    metrics = fidelity_of([seen("one two three", "four"), seen("five six"), seen()])
    assert metrics["requested"] == 2 and metrics["documents"] == 1
    assert metrics["incomplete"] == pytest.approx(2 / 3)
    assert metrics["empty"] == pytest.approx(1 / 3)
    assert metrics["words"] == 2
    assert metrics["words_p95"] == pytest.approx(2.9)  # between 2 and 3, linear


def test_repetitions_within_a_search_and_across_searches_are_told_apart() -> None:
    metrics = fidelity_of([seen("A text.", "a  TEXT"), seen("text", "other")])
    assert metrics["duplicates"] == 0.25  # 1 of 4 documents
    assert metrics["repeats"] == 0.25
    assert fidelity_of([seen("a b"), seen("c d")])["repeats"] == 0


def test_cost_latency_and_problems() -> None:
    metrics = fidelity_of(
        [
            seen("x", latency_s=float(number), attempts=1 + (number == 0), tokens=number)
            for number in range(101)
        ]
        + [
            seen(
                "x",
                latency_s=50.0,
                cost_usd=0.5,
                cached=True,
                tokens=50,
                problems=("truncated", "too_few", "truncated"),
            )
        ]
    )
    assert (metrics["latency_s"], metrics["latency_s_p50"]) == (50, 50)
    assert metrics["latency_s_p95"] == pytest.approx(94.95)
    assert metrics["latency_s_p99"] == pytest.approx(98.99)
    assert metrics["attempts"] == pytest.approx(103 / 102)
    assert metrics["tokens"] == 50 and metrics["cost_usd"] == 0.5
    assert metrics["cached"] == pytest.approx(1 / 102)
    assert metrics["problem/truncated"] == pytest.approx(2 / 102)
    assert metrics["problem/too_few"] == pytest.approx(1 / 102)


def test_without_searches_nothing_is_said() -> None:
    assert fidelity_of([]) == {}
    assert "words" not in fidelity_of([seen()])
