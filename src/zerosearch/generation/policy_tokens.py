"""Which tokens end a policy's text, and what its token ids say."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from zerosearch.generation.stops import decode


class PolicyTokens:
    """What a sampler has to know of a policy's tokenizer.

    Args:
        model: causal LM (a PEFT wrapper too), for its generation config.
        tokenizer: the one that made the prompts.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.eos_ids = _ends_of_text(model, tokenizer)
        self._control_ids = self.eos_ids | {
            token
            for token in (tokenizer.bos_token_id, tokenizer.pad_token_id)
            if isinstance(token, int)
        }

    def text(self, token_ids: list[int]) -> str:
        """Text of the ids without EOS, BOS and padding; other special tokens may be tags."""
        return decode(self.tokenizer, [i for i in token_ids if i not in self._control_ids])


def _ends_of_text(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Union over the places that may name an EOS: chat models often have several."""
    found: set[int] = set()
    generation = model.generation_config
    named: list[Any] = [tokenizer.eos_token_id, generation.eos_token_id if generation else None]
    for ids in named:
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return frozenset(found)
