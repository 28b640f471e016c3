"""Prompt ids: BOS exactly once, no vocabulary change, clear errors."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AddedToken, AutoConfig, AutoTokenizer, PretrainedConfig

from tests.helpers.models import LLAMA, make_tokenizer
from zerosearch.core.errors import InputError
from zerosearch.policy.tokenizer import (
    adds_bos,
    encode_prompt,
    fix_date,
    needs_bos,
    prepare_tokenizer,
    render_prompt,
)

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
BOS_ID, EOS_ID, PAD_ID = 257, 256, 258


def config(**fields: Any) -> PretrainedConfig:
    return AutoConfig.for_model(**(LLAMA | fields))


def test_bos_is_added_exactly_once() -> None:
    tokenizer = make_tokenizer(bos=True)
    ids = encode_prompt(tokenizer, "Who?")
    assert ids[0] == BOS_ID and ids.count(BOS_ID) == 1
    assert tokenizer.decode(ids[1:]) == "Who?"
    assert encode_prompt(tokenizer, "<s>Who?") == ids


def test_no_bos_where_the_tokenizer_has_none() -> None:
    tokenizer = make_tokenizer()
    ids = encode_prompt(tokenizer, "Who?")
    assert len(ids) == 4 and tokenizer.decode(ids) == "Who?"
    assert not needs_bos(tokenizer, config())


def test_a_bos_token_that_is_not_put_before_text_is_not_added() -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<s>"  # as GPT-2 and SmolLM2: it exists, but text does not start with it
    assert not adds_bos(tokenizer) and not needs_bos(tokenizer, config())
    assert BOS_ID not in encode_prompt(tokenizer, "Who?")


def test_an_eos_that_the_tokenizer_appends_is_left_out() -> None:
    tokenizer = make_tokenizer(bos=True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS_ID), ("</s>", EOS_ID)]
    )
    assert tokenizer.encode("a")[-1] == EOS_ID
    assert encode_prompt(tokenizer, "a")[0] == BOS_ID
    assert EOS_ID not in encode_prompt(tokenizer, "a")


def test_gemma_gets_the_bos_rule_that_a_conversion_lost(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<s>"
    gemma = config(model_type="gemma3_text")
    assert needs_bos(tokenizer, gemma) and not adds_bos(tokenizer)
    prepare_tokenizer(tokenizer, gemma)
    assert encode_prompt(tokenizer, "Who?")[0] == BOS_ID
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("Who?")[0] == BOS_ID


def test_pad_falls_back_to_eos_without_growing_the_vocabulary() -> None:
    tokenizer = make_tokenizer(pad=False)
    size = len(tokenizer)
    prepare_tokenizer(tokenizer, config())
    assert tokenizer.pad_token_id == EOS_ID and len(tokenizer) == size
    kept = prepare_tokenizer(make_tokenizer(pad=True), config())
    assert kept.pad_token_id == PAD_ID


def test_no_eos_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"no EOS token.*set eos_token"):
        prepare_tokenizer(make_tokenizer(eos=False), config())


def test_more_tokens_than_embeddings_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="token id 258 but the model only 200 embeddings"):
        prepare_tokenizer(make_tokenizer(), config(vocab_size=200))


@pytest.mark.parametrize("special", [True, False])
def test_a_control_token_that_no_text_gets_needs_no_embedding(special: bool) -> None:
    """The tokenizer of gemma-3-1b-it has <image_soft_token>, its model no row for that."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<image_soft_token>", special=special)])
    refusal = pytest.raises(ValueError, match="token id 259 but the model only 259 embeddings")
    with nullcontext() if special else refusal:
        prepare_tokenizer(tokenizer, config(vocab_size=259))


@pytest.mark.parametrize("used", ["template", "pair"])
def test_a_control_token_that_our_texts_have_needs_its_embedding(used: str) -> None:
    tokenizer = make_tokenizer(chat_template=True)
    names = ["<|turn|>"] if used == "template" else ["<search>", "</search>"]
    tokenizer.add_tokens([AddedToken(name, special=True) for name in names])
    prepare_tokenizer(tokenizer, config(vocab_size=259 + len(names)))
    if used == "template":
        prepare_tokenizer(tokenizer, config(vocab_size=259))
        tokenizer.chat_template = f"{tokenizer.chat_template}<|turn|>"
    with pytest.raises(ValueError, match=r"has token id 2\d\d but the model only 259 embeddings"):
        prepare_tokenizer(tokenizer, config(vocab_size=259))


@pytest.mark.parametrize("bos", [True, False])
def test_chat_template_alone_decides_about_the_bos(bos: bool) -> None:
    tokenizer = make_tokenizer(bos=bos, chat_template=True)
    ids = render_prompt(tokenizer, MESSAGES, chat=True)
    text = "[system]Be brief.</s>[user]Who?</s>[assistant]"
    assert tokenizer.decode(ids) == ("<s>" if bos else "") + text
    assert ids.count(BOS_ID) == int(bos)


def test_plain_prompt_joins_the_contents() -> None:
    tokenizer = make_tokenizer(bos=True, chat_template=True)
    ids = render_prompt(tokenizer, MESSAGES, chat=False)
    assert tokenizer.decode(ids) == "<s>Be brief.\n\nWho?"


def test_chat_without_template_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"no chat template: set model.chat=false"):
        render_prompt(make_tokenizer(), MESSAGES, chat=True)


def test_template_that_refuses_a_role_is_a_clear_error() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ValueError, match=r"\['system', 'user'\].*System role not supported"):
        render_prompt(tokenizer, MESSAGES, chat=True)


# -- templates that print the date

LLAMA_3_2 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}'
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "{# strftime_now(anything) #}Today: {{ date_string }}, {{ strftime_now( '%A' ) }}"
)


def test_a_date_in_a_chat_template_is_fixed() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = LLAMA_3_2
    fix_date(tokenizer, datetime(2026, 2, 3, 23, 59))
    ids = render_prompt(tokenizer, MESSAGES, chat=True)
    assert tokenizer.decode(ids) == "Today: 03 Feb 2026, Tuesday"
    before = tokenizer.chat_template
    fix_date(tokenizer, datetime(2027, 1, 1))
    assert tokenizer.chat_template == before, "nothing is left to fix"


@pytest.mark.parametrize(
    "template", ["{{ strftime_now(format) }}", "{% set now = strftime_now %}{{ now('%d') }}"]
)
def test_a_date_that_cannot_be_fixed_is_refused(template: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="today's date with strftime_now in another form"):
        fix_date(tokenizer, datetime(2026, 2, 3))
