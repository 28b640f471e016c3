"""Examples as token ids: some are read, the others are learned.

Legend: B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from zerosearch.core.controls import THINK, disarm
from zerosearch.core.errors import InputError
from zerosearch.policy.tokenizer import control_tokens, render_prompt, without_own_controls
from zerosearch.tuning.tuning_set import TuningExample
from zerosearch.types import PolicyBatch


@dataclass(kw_only=True, slots=True, frozen=True)
class EncodedExample:
    """One example: `ids` [T], and which of them are learned [T]."""

    ids: list[int]
    learned: list[bool]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt_ids(self) -> list[int]:
        """What stands before the first learned token."""
        return self.ids[: self.learned.index(True)]


def encode(
    tokenizer: PreTrainedTokenizerBase, example: TuningExample, *, chat: bool
) -> EncodedExample:
    """Encode the prompt as a server does, and the reply, which is learned, as a model writes it.

    Of control tokens the ids hold those of the template, and the EOS at the end.

    Args:
        tokenizer: prepared by `prepare_tokenizer`.
        example: what to encode; EOS, which is learned too, is put after the reply.
        chat: whether prompts go through the chat template.
    """
    assert isinstance(tokenizer.eos_token_id, int)
    messages = without_own_controls(tokenizer, example.messages)
    prompt = render_prompt(tokenizer, messages, chat=chat)
    written = disarm(example.reply, control_tokens(tokenizer), keep=THINK)
    reply = [*tokenizer.encode(written, add_special_tokens=False), tokenizer.eos_token_id]
    return EncodedExample(ids=prompt + reply, learned=[False] * len(prompt) + [True] * len(reply))


def check_lengths(examples: Sequence[EncodedExample], max_tokens: int) -> None:
    """Raise where an example is longer than allowed: a cut reply would teach to stop short.

    Raises:
        InputError: says how many are, and the longest.
    """
    longer = [len(example) for example in examples if len(example) > max_tokens]
    if longer:
        raise InputError(
            f"module.max_tokens={max_tokens}: {len(longer)} of {len(examples)} examples are "
            f"longer, up to {max(longer)} tokens; raise it, or make rows with fewer or shorter "
            "documents"
        )


def collate(examples: Sequence[EncodedExample], *, pad_id: int) -> PolicyBatch:
    """Pad examples on the right.

    Args:
        examples: B of them; none gives one empty row, so that a rank without data still runs the
            forward and backward passes of the others.
        pad_id: written where `attention_mask` is False.

    Returns:
        A batch whose `sampled_mask` is True on what is learned, as if a policy had sampled it.
    """
    shape = (max(1, len(examples)), max((len(example) for example in examples), default=2))
    ids = torch.full(shape, pad_id)
    attended = torch.zeros(shape, dtype=torch.bool)
    learned = torch.zeros(shape, dtype=torch.bool)
    if not examples:
        attended[:] = True
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example.ids)
        attended[row, : len(example)] = True
        learned[row, : len(example)] = torch.tensor(example.learned)
    zeros = torch.zeros(shape, dtype=torch.float32)
    return PolicyBatch(
        input_ids=ids,
        attention_mask=attended,
        sampled_mask=learned,
        behaviour_logprobs=zeros,
        advantages=zeros.clone(),
    )
