"""Stops are found in text, whatever the tokens are that spell it."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers.models import make_tokenizer
from zerosearch.generation.stops import StopMatcher, decode


def merged_tokenizer(*merges: tuple[str, str], tags: tuple[str, ...] = ()):
    """Byte-level BPE with the given merges on top of single bytes; tags are special tokens."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in merges]
    backend = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[*merges]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(tags))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def completed_at(matcher: StopMatcher, ids: list[int], prompt_length: int = 0) -> list[int]:
    """Lengths at which the matcher says that a stop was completed."""
    return [
        length
        for length in range(prompt_length + 1, len(ids) + 1)
        if matcher.completes(ids[:length], prompt_length)
    ]


@pytest.mark.parametrize("stop", ["</search>", "é", "終わり", "end ", "\n\n"])
def test_stop_is_found_at_the_byte_that_completes_it(stop):
    tokenizer = make_tokenizer()
    matcher = StopMatcher(tokenizer, ("</answer>", stop))
    before = len(b"some text" + stop.encode())
    ids = tokenizer.encode("some text" + stop)
    assert len(ids) == before
    assert completed_at(matcher, ids) == [before]


def test_token_that_holds_more_than_the_end_of_the_stop():
    tokenizer = merged_tokenizer((">", "Ċ"), ("h", ">Ċ"))
    ids = tokenizer.encode("<search>x</search>\nmore")
    assert decode(tokenizer, ids[-5:-4]) == "h>\n"
    matcher = StopMatcher(tokenizer, ("</search>",))
    assert completed_at(matcher, ids) == [len(ids) - 4]


def test_tag_that_is_one_special_token():
    tokenizer = merged_tokenizer(tags=("</search>",))
    ids = tokenizer.encode("x</search>")
    assert len(ids) == 2
    assert completed_at(StopMatcher(tokenizer, ("</search>",)), ids) == [2]


def test_near_misses_do_not_stop():
    tokenizer = make_tokenizer()
    matcher = StopMatcher(tokenizer, ("</search>", "</answer>"))
    text = "<search> </search </ search> </SEARCH> <answer> search> 3 > 2"
    assert completed_at(matcher, tokenizer.encode(text)) == []


def test_what_the_prompt_holds_is_no_stop():
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("</search>>")
    matcher = StopMatcher(tokenizer, ("</search>",))
    assert completed_at(matcher, ids, prompt_length=8) == []
    assert completed_at(matcher, ids, prompt_length=0)[0] == 9


def test_no_stops_never_stop():
    assert completed_at(StopMatcher(make_tokenizer(), ()), [60, 61, 62]) == []
