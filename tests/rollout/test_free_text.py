from __future__ import annotations

import pytest

from tests.helpers.waiting import guarded
from zerosearch.rollout.free_text import read_free_text


@pytest.mark.parametrize(
    ("text", "rest", "broken"),
    [
        ("", "", 0),
        ("<search> a </search>", "", 0),
        ("Hm. <answer> Lima </answer> So.", "Hm.  So.", 0),
        ("<think> a b </think>\n<search>q</search>", " a b \n", 0),
        ("a < b, and thinking <i>so</i>", "a < b, and thinking <i>so</i>", 0),
        # a thought that the action interrupts, and a row as Search-R1's models wrote it
        ("<think> a <search>q</search>", "<think> a ", 1),
        ("<think]<think]<think] <answer>x</answer>", "<think]<think]<think] ", 3),
        ("</think></ answer><Search>q</Search>", "</think></ answer><Search>q</Search>", 4),
        ("<search><search>q</search>", "<search>", 1),
        ("<search>q</answer>", "<search>q</answer>", 2),
        # documents are inserted, never written
        ("<information>Lima.</information>", "<information>Lima.</information>", 2),
    ],
)
def test_tags_without_a_partner_are_broken(text: str, rest: str, broken: int) -> None:
    found = read_free_text(text)
    assert (found.text, found.broken_tags) == (rest, broken)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("one two three", 0.0),  # no 4-gram
        ("I need to find the town first.", 0.0),
        ("a b c d a b c d", 1 / 5),  # abcd bcda cdab dabc abcd
        ("go " * 13, 9 / 10),
        ("<think]" * 5, 1 - 3 / 12),  # 15 marks and words, of which three alternate
        ("<search>a b c d</search> a b c d", 0.0),  # a query is no free text
    ],
)
def test_repetition_is_counted_in_words_outside_queries_and_answers(
    text: str, share: float
) -> None:
    assert read_free_text(text).repetition == pytest.approx(share)


def test_spaces_after_a_bracket_are_not_gone_through_again_and_again() -> None:
    with guarded():
        assert read_free_text(f"<{' ' * 200_000}").broken_tags == 0
