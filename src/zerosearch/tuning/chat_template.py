"""A tokenizer as chat servers need it: with a template that gives the very prompts of training."""

from __future__ import annotations

import copy

from transformers import PreTrainedTokenizerBase

from zerosearch.policy.tokenizer import adds_bos, render_prompt

# How `render_prompt` joins the messages of a base model.
_PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
)
_SAMPLE = ({"role": "system", "content": "one "}, {"role": "user", "content": " two\n"})


def servable(tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> PreTrainedTokenizerBase:
    """The tokenizer, with a chat template where the model was tuned on plain text.

    Args:
        tokenizer: prepared by `prepare_tokenizer`; not changed.
        chat: whether the model was tuned through its own chat template.
    """
    if chat:
        return tokenizer
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = ("{{ bos_token }}" if adds_bos(tokenizer) else "") + _PLAIN
    assert render_prompt(plain, _SAMPLE, chat=True) == render_prompt(tokenizer, _SAMPLE, chat=False)
    return plain
