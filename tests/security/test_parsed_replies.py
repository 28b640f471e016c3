"""Replies of a simulator that are long on purpose are read in time that grows with their length."""

from __future__ import annotations

import time

import pytest

from tests.helpers.waiting import guarded
from zerosearch.simulator.replies import parse_reply
from zerosearch.tuning.judges import fence_of

LONG = 4_000_000  # characters


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"Doc {number}: a\n" for number in range(1, LONG // 12)),
        "Doc 1: a\n" * (LONG // 9),
        "Doc 1:\n" * (LONG // 7),
        "Doc 1: a" + "\n---" * (LONG // 4),
        "Doc 1: a\nDoc 2: b" + "\n \nx" * (LONG // 4),
        "Doc 1: " + ".)" * (LONG // 2),
    ],
    ids=["numbered", "the same", "empty", "rules", "paragraphs", "sentences"],
)
def test_four_megabytes_take_no_second(text: str) -> None:
    for finish_reason in ("stop", "length"):
        started = time.process_time()
        reply = parse_reply(text, 5, finish_reason)
        assert time.process_time() - started < 0.6
        assert len(reply.documents) <= 5


def test_spaces_are_not_gone_through_again_and_again() -> None:
    with guarded():
        reply = parse_reply("Doc 1" + " " * 200_000 + "x\nDoc 1: a", 5)
    assert [document.text for document in reply.documents] == ["a"]


def test_documents_beyond_those_asked_for_count_as_too_many() -> None:
    text = "".join(f"Doc {number}: a\n" for number in range(1, 5000))
    assert parse_reply(text, 3).problems == ("too_many",)
    assert len(parse_reply(text, 3).documents) == 3


def test_a_document_of_fences_is_fenced_at_once() -> None:
    assert [fence_of(text) for text in ("a", "====", "=====", "== ====== =")] == [
        *("=====", "=====", "======", "======="),
    ]
    with guarded():
        assert len(fence_of("=" * LONG)) == LONG + 1
