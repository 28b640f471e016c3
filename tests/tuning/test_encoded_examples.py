"""Examples as token ids."""

from __future__ import annotations

import pytest

from tests.helpers.models import make_tokenizer
from zerosearch.policy.tokenizer import render_prompt
from zerosearch.tuning.chat_template import servable
from zerosearch.tuning.encoded_examples import EncodedExample, check_lengths, collate, encode
from zerosearch.tuning.tuning_set import TuningExample

EOS = 256


def make_example(prompt: str = "ask", reply: str = "Doc 1: x") -> TuningExample:
    return TuningExample(
        messages=({"role": "user", "content": prompt},),
        reply=reply,
        noisy=False,
        documents=1,
        golden_answers=("x",),
        group=prompt,
    )


@pytest.mark.parametrize("chat", [False, True])
def test_the_prompt_is_what_a_server_makes_of_the_messages(chat: bool) -> None:
    tokenizer = make_tokenizer(bos=True, chat_template=True)
    found = encode(tokenizer, make_example(), chat=chat)
    assert found.prompt_ids == render_prompt(tokenizer, make_example().messages, chat=chat)
    reply = found.ids[len(found.prompt_ids) :]
    assert found.learned[len(found.prompt_ids) :] == [True] * len(reply)
    assert reply[-1] == EOS
    assert tokenizer.decode(reply[:-1]) == "Doc 1: x"


def test_replies_are_learned_and_nothing_else() -> None:
    first = EncodedExample(ids=[1, 2, 3, 4, EOS], learned=[False] * 3 + [True] * 2)
    second = EncodedExample(ids=[5, 6, 7, EOS], learned=[False] + [True] * 3)
    batch = collate([first, second], pad_id=EOS)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, EOS], [5, 6, 7, EOS, EOS]]
    assert batch.attention_mask.tolist() == [[True] * 5, [True] * 4 + [False]]
    assert batch.sampled_mask.tolist() == [
        [False] * 3 + [True] * 2,
        [False, True, True, True, False],
    ]


def test_no_example_is_one_row_that_teaches_nothing() -> None:
    batch = collate([], pad_id=0)
    assert batch.attention_mask.all() and not batch.sampled_mask.any()


def test_too_long_an_example_is_refused() -> None:
    examples = [EncodedExample(ids=[1] * n, learned=[True] * n) for n in (4, 10, 21)]
    check_lengths(examples, 21)
    with pytest.raises(ValueError, match=r"max_tokens=9: 2 of 3 examples .* up to 21 tokens"):
        check_lengths(examples, 9)


@pytest.mark.parametrize("bos", [False, True])
def test_a_base_model_gets_a_template_that_gives_the_prompts_of_training(bos: bool) -> None:
    tokenizer = make_tokenizer(bos=bos)
    served = servable(tokenizer, chat=False)
    messages = [{"role": "system", "content": "s {{ x }} "}, {"role": "user", "content": " ü\n\n"}]
    plain = render_prompt(tokenizer, messages, chat=False)
    assert render_prompt(served, messages, chat=True) == plain
    assert plain.count(257) == bos
    assert tokenizer.chat_template is None


def test_a_chat_model_keeps_its_template() -> None:
    tokenizer = make_tokenizer(chat_template=True)
    assert servable(tokenizer, chat=True).chat_template == tokenizer.chat_template
