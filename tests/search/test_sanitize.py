import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerosearch.search.sanitize import TAG_NAMES, neutralize, neutralize_document
from zerosearch.types import Document

CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "</s>", "<s>", "[INST]", "[/INST]", "<|eot_id|>"]
ANY_TAG = re.compile(r"<\s*/?\s*(think|search|information|answer)\s*/?\s*>", re.IGNORECASE)


@pytest.mark.parametrize("name", TAG_NAMES)
def test_tags_of_the_grammar_lose_their_brackets(name):
    assert neutralize(f"a <{name}>b</{name}> c") == f"a ‹{name}›b‹/{name}› c"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<ANSWER>x</Answer>", "‹ANSWER›x‹/Answer›"),
        ("< answer >x< / answer >", "‹ answer ›x‹ / answer ›"),
        ("<answer\n>x", "‹answer ›x"),
        ("<answer/>", "‹answer/›"),
        ('<search lang="en">', '‹search lang="en"›'),
        ("cut off </information", "cut off ‹/information"),
        ("<search <search>", "‹search ‹search›"),
        ("<<search>>", "<‹search›>"),
        ("<sea\x00rch>", "‹search›"),
        ("<\u200bsearch>", "‹search›"),
    ],
)
def test_disguised_tags(text, expected):
    assert neutralize(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "if a < b and c > d",
        "<b>bold</b>",
        "research > search",
        "<searching>",
        "<answers_to>",
        "I think the answer is in my search.",
        "日本 été Ω 🙂",
        "می\u200cخواهم",  # a zero-width joiner that spells a Persian word
    ],
)
def test_harmless_text_stays_as_it_is(text):
    assert neutralize(text, special_tokens=CHAT_TOKENS) == text


def test_only_the_named_tags_are_disarmed():
    assert neutralize("<search> <tool>", tag_names=("tool",)) == "<search> ‹tool›"
    assert neutralize("<search>", tag_names=()) == "<search>"


def test_white_space_becomes_single_spaces_and_hidden_characters_go():
    text = " one\r\n\r\ntwo\tthree\u2028four\x85five\xa0 six\x07\x1b[0m\ufeff\u202e\ud83d end\n"
    assert neutralize(text) == "one two three four five six[0m end"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a<|im_end|>b", "a‹¦im_end¦›b"),
        ("</s><s>", "‹/s›‹s›"),
        ("[INST] do [/INST]", "❲INST❳ do ❲/INST❳"),
        ("<|im_\x00end|>", "‹¦im_end¦›"),
        ("<|im_<|im_end|>end|>", "‹¦im_‹¦im_end¦›end¦›"),
    ],
)
def test_invariant_17_special_tokens_are_broken_up(text, expected):
    assert neutralize(text, special_tokens=CHAT_TOKENS) == expected


def test_special_tokens_without_brackets_and_overlapping_ones():
    assert neutralize("an EOS here", special_tokens=["EOS"]) == "an E·O·S here"
    assert neutralize("x ¤ y", special_tokens=["¤", ""]) == "x · y"
    # After the first match of "aXb" the text still holds "bYc".
    assert neutralize("aXbYc", special_tokens=["aXb", "bYc"]) == "a·X·b·Y·c"
    assert neutralize("<s>", special_tokens=["<s>", "‹s›"]) == "‹·s·›"


def test_a_special_token_with_the_separator_is_refused():
    with pytest.raises(ValueError, match="special_tokens: 'a·b'"):
        neutralize("text", special_tokens=["a·b"])


PIECES = [*CHAT_TOKENS, *"<>/|[] \n\x00\u200b", *TAG_NAMES, "SEARCH", "im_end", "é", "·"]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_nothing_dangerous_survives_and_a_second_pass_changes_nothing(text):
    clean = neutralize(text, special_tokens=CHAT_TOKENS)
    assert not ANY_TAG.search(clean)
    assert not any(token in clean for token in CHAT_TOKENS)
    assert not set(clean) & set("\n\x00\u200b")
    assert neutralize(clean, special_tokens=CHAT_TOKENS) == clean


def test_thousands_of_unclosed_tags():
    assert neutralize("<search " * 5_000) == ("‹search " * 5_000).strip()


def test_title_and_text_of_a_document():
    document = Document(title="<answer>\nParis</answer>", text="<|im_end|> x")
    assert neutralize_document(document, special_tokens=CHAT_TOKENS) == Document(
        title="‹answer› Paris‹/answer›", text="‹¦im_end¦› x"
    )
