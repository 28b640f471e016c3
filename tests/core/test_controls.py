"""Marks of every family are rewritten, other text stays as it is."""

import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerosearch.core.controls import disarm
from zerosearch.core.errors import InputError
from zerosearch.data.geography.facts import load_facts
from zerosearch.data.geography.source import SPLITS, GeographySource
from zerosearch.data.geography.wording import word_passage

MARKS = [
    "<|im_start|>",
    "<|reserved_special_token_0|>",
    "<｜User｜>",
    "<｜begin▁of▁sentence｜>",
    "<|turn>",
    "<turn|>",
    "</s>",
    "<start_of_turn>",
    "<<SYS>>",
    "<</SYS>>",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "</tool_call>",
    "<unused99>",
    "<PAD>",
]
TOKENS = ["EOS", "<weird one>", "aXb", "bYc"]


@pytest.mark.parametrize("mark", MARKS)
def test_invariant_17_a_mark_is_rewritten_and_what_stands_around_it_stays(mark):
    found = disarm(f"one {mark}two\n\n three")
    assert mark not in found
    assert found.startswith("one ") and found.endswith("two\n\n three")
    assert len(found) == len(f"one {mark}two\n\n three")


@pytest.mark.parametrize(
    "text",
    [
        "if a < b and c > d | e, or x<y",
        "xs <| List.map f |> sum",  # pipes of F#
        "p <|> q, |> and <|",
        "List<String>, <b>bold</b>, <p>, <filename>, <search>",
        "[1], [sic], [Inst], [INSTALL], [MASKS], a[S]",
        "日本 été Ω ≮ ﬁne ｜ ＜ 🙂",
        "  two  spaces\r\n\tand breaks \u2028 \x00 ",
    ],
)
def test_other_text_stays_as_it_is(text):
    assert disarm(text) == text


def test_questions_and_documents_of_the_embedded_world_stay_as_they_are():
    rng = random.Random(0)
    texts = [word_passage(entity, rng) for entity in load_facts()]
    for split in SPLITS:
        for question in GeographySource(split=split).load():
            texts += [question.text, *question.golden_answers]
    assert len(texts) > 1000
    assert all(disarm(text) == text for text in texts)


def test_marks_of_a_tokenizer_and_marks_that_stay():
    assert disarm("an EOS, a <weird one>", TOKENS) == "an E·O·S, a ‹weird one›"
    # After the first match of "aXb" the text still holds "bYc".
    assert disarm("aXbYc", TOKENS) == "a·X·b·Y·c"
    assert disarm("<think>x</think><|a|>", keep=("<think>", "</think>")) == "<think>x</think>‹¦a¦›"
    assert disarm("<|a<|b|>", keep=("<|b|>",)) == "<|a<|b|>"


def test_overlapping_marks():
    assert disarm("<|im_<|im_end|>end|>") == "‹¦im_‹¦im_end¦›end¦›"
    assert disarm("<s<s>>") == "<s‹s›>"


@pytest.mark.parametrize(
    "text", ["＜|im_end|＞", "<｜im_end|>", "<|ｉm_end|>", "＜ｓ＞", "﹇INST﹈"]
)
def test_marks_in_characters_that_a_normal_form_makes_plain(text):
    found = disarm(text)
    assert disarm(unicodedata.normalize("NFKC", found)) == unicodedata.normalize("NFKC", found)


@pytest.mark.parametrize("text", ["an ＥＯＳ", "an E\uff2fS, ｛ ＜", "ａＸｂＹｃ <ｓ>"])
def test_marks_without_brackets_in_such_characters(text):
    found = disarm(text, TOKENS)
    normal = unicodedata.normalize("NFKC", found)
    assert not any(mark in normal for mark in [*TOKENS, "<s>"])
    assert disarm(found, TOKENS) == found


def test_a_token_with_the_separator_is_refused():
    with pytest.raises(InputError, match="'a·b' contains '·'"):
        disarm("text", ["a·b"])


PIECES = [
    *MARKS,
    *TOKENS,
    *"<>/|[]s ",
    "SYS",
    "im_end",
    "é",
    "·",
    "＜",
    "｜",
    "ＥＯ",
    "Ｓ",
    "\u0338",
    "\u0301",
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_no_mark_survives_and_a_second_pass_changes_nothing(text):
    found = disarm(text, TOKENS)
    normal = unicodedata.normalize("NFKC", found)
    assert not any(mark in each for mark in [*MARKS, *TOKENS] for each in (found, normal))
    assert disarm(found, TOKENS) == found


def test_a_long_text_of_half_marks():
    assert disarm("<|im_start " * 20_000) == "<|im_start " * 20_000
