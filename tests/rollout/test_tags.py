import pytest

from zerosearch.reward.answer import extract_answer
from zerosearch.rollout.tags import ParsedTurn, parse_turn


@pytest.mark.parametrize(
    ("text", "action", "content"),
    [
        ("<search>capital of Peru</search>", "search", "capital of Peru"),
        ("<think>hm</think>\n<search>\n two\nlines \n</search>", "search", "two\nlines"),
        ("<answer> Lima </answer>", "answer", "Lima"),
        ("<answer></answer>", "answer", ""),
        ("<answer>a<answer>b</answer>", "answer", "b"),
        ("<search>a <search>b</search>", "search", "b"),
        ("<answer>never closed <search>x</search>", "search", "x"),
        ("<search>never closed <answer>x</answer>", "answer", "x"),
        ("<search>x</search>\n\n", "search", "x"),  # the closing token may bring more text
    ],
)
def test_action_of_a_turn(text: str, action: str, content: str) -> None:
    assert parse_turn(text) == ParsedTurn(action=action, content=content)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Lima",
        "<search>x",
        "x</search>",
        "</search><search>",
        "<answer>x",
        "x</answer>",
        "<search></search>",
        "<search> \n </search>",
        "<search>x</answer>",
        "<answer>x</search>",
        "<SEARCH>x</SEARCH>",
        "<information>Lima</information>",
    ],
)
def test_without_a_whole_action_a_turn_is_invalid(text: str) -> None:
    assert parse_turn(text) == ParsedTurn(action="invalid")


def test_the_pair_that_closes_last_is_the_action() -> None:
    first, second = "<search>x</search>", "<answer>y</answer>"
    assert parse_turn(first + second) == ParsedTurn(action="answer", content="y")
    assert parse_turn(second + first) == ParsedTurn(action="search", content="x")


@pytest.mark.parametrize("text", ["<answer>x</answer>", "<answer> a<answer>b </answer>", "no"])
def test_an_answer_turn_is_one_that_has_an_answer_to_reward(text: str) -> None:
    parsed = parse_turn(text)
    expected = parsed.content if parsed.action == "answer" else None
    assert extract_answer(text) == expected
