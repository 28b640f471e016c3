"""A policy of a few words that asks, reads and answers in single tokens, made in milliseconds.

Its next token depends (almost) on the last one alone: after the prompt or documents it asks or
answers, a query is one of two words, an answer one of four colours, each as likely as the others.
So whole episodes, real rewards and something to learn cost next to nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.helpers.models import make_model
from zerosearch.rollout.tags import ANSWER, INFORMATION, SEARCH

COLOURS = ("red", "green", "blue", "gold")
QUERIES = ("where", "who")
EOS, UNKNOWN = "<eos>", "<unk>"
VOCABULARY = (EOS, UNKNOWN, *SEARCH, *ANSWER, *INFORMATION, *COLOURS, *QUERIES, "Question:", "Doc")
WIDTH = 32  # at least the vocabulary

_CERTAIN = 8.0  # logit of a likely successor: the others together get half a percent


def make_word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; other words are unknown. It has no pad token and no chat template."""
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, unk_token=UNKNOWN)


def make_word_model(seed: int = 0, *, ask: float = 0.5, **fields: Any) -> PreTrainedModel:
    """The policy, in training mode.

    Args:
        seed: of attention and MLP, which add a little that depends on the whole context.
        ask: probability to search rather than to answer, in [0, 1].
        fields: config fields over the usual ones.
    """
    settings = {"hidden_size": WIDTH, "intermediate_size": 64, "head_dim": 8, **fields}
    model = make_model(seed, vocab_size=len(VOCABULARY), eos_token_id=0, bos_token_id=0, **settings)
    logits = torch.zeros(len(VOCABULARY), len(VOCABULARY))  # [from, to]

    def follow(before: tuple[str, ...], after: tuple[str, ...], shift: float = 0.0) -> None:
        for first in before:
            for second in after:
                logits[VOCABULARY.index(first), VOCABULARY.index(second)] = _CERTAIN + shift

    start = (UNKNOWN, "Question:", INFORMATION[1])
    for tags, share in ((SEARCH, ask), (ANSWER, 1.0 - ask)):
        follow(start, tags[:1], float(torch.tensor(share).clamp(min=1e-9).log()))
    follow(SEARCH[:1], QUERIES)
    follow(QUERIES, SEARCH[1:])
    follow(ANSWER[:1], COLOURS)
    follow(COLOURS, ANSWER[1:])
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(len(VOCABULARY), WIDTH))
        model.lm_head.weight.zero_()
        # the norm before the head makes an embedding of length 1 one of length sqrt(width)
        model.lm_head.weight[:, : len(VOCABULARY)] = logits.T / WIDTH**0.5
    return model


def save_word_policy(folder: Path, seed: int = 0, **fields: Any) -> Path:
    """Write the policy as `from_pretrained` expects it."""
    make_word_model(seed, **fields).save_pretrained(folder)
    make_word_tokenizer().save_pretrained(folder)
    return folder
