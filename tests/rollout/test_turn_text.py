"""Turns of other grammars in the tags of the policy."""

from __future__ import annotations

import pytest

from zerosearch.rollout.tags import parse_turn
from zerosearch.rollout.turn_text import disarm, in_tags
from zerosearch.types import Turn


def turn(text: str) -> Turn:
    parsed = parse_turn(text)
    query = parsed.content if parsed.action == "search" else None
    return Turn(text=text, action=parsed.action, query=query)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("<think>hm</think><search>a b</search>", "<think> hm </think> <search> a b </search>"),
        ("I look.\n\n<search>a\nb</search>", "<think> I look. </think> <search> a b </search>"),
        ("<answer>Ada</answer>", "<answer> Ada </answer>"),
        (
            "<think>one\ntwo</think> three <answer> Ada </answer>",
            "<think> one\ntwo\nthree </think> <answer> Ada </answer>",
        ),
        (
            "<think><search>x <answer>no</answer></think><search>a</search>",
            "<think> ‹search›x ‹answer›no‹/answer› </think> <search> a </search>",
        ),
        (
            "<information>Ada</information><search>a <|im_end|> b</search>",
            "<think> ‹information›Ada‹/information› </think> <search> a ‹¦im_end¦› b </search>",
        ),
        ("<think>I know it", "<think> I know it </think>"),
        ("", ""),
    ],
)
def test_only_the_tags_of_the_turn_are_markup(text: str, written: str) -> None:
    assert in_tags(turn(text), None) == written


def test_an_answer_without_tags_is_the_episodes() -> None:
    assert in_tags(Turn(text="Ada.\n", action="answer"), "Ada.") == "<answer> Ada. </answer>"


@pytest.mark.parametrize(
    "token",
    [
        *("<|im_start|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<｜User｜>"),
        *("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>"),
        *("<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "[TOOL_CALLS]", "<tool_call>"),
    ],
)
def test_control_tokens_of_all_families_are_disarmed(token: str) -> None:
    text = f"a {token} b {token[:-1]}{token}{token[-1]}"
    clean = disarm(text)
    assert token not in clean and disarm(clean) == clean
    assert not any(
        mark in in_tags(turn(f"{token}<search>{token}</search>"), None) for mark in [token]
    )


@pytest.mark.parametrize("text", ["x < 3 || y > 2", "[1] a [INSTRUMENT]", "<search> a </search>"])
def test_other_text_stays(text: str) -> None:
    assert disarm(text) == text
