"""Finding the token that completes a stop string, without decoding every token.

Tags are rarely one token and tokens rarely end where a tag does (`>` and a line break are often
one), so stops are looked for in text. Only tokens whose text holds the last character of a stop
can complete one; the others cost a set look-up.
"""

from __future__ import annotations

from collections.abc import Collection

from transformers import PreTrainedTokenizerBase

# Tokens may decode to nothing, or a tail may begin inside a character: a little more than needed.
_TAIL_MARGIN = 4


class StopMatcher:
    """Says whether the newest token completed one of the stop strings.

    Args:
        tokenizer: decodes the sampled ids.
        stops: non-empty texts; none means nothing ever stops.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._enders = _tokens_that_may_end(tokenizer, {stop[-1] for stop in stops})
        # A token stands for at least one byte of text, so no stop spans more tokens than bytes.
        self._tail = max((len(stop.encode()) for stop in stops), default=0) + _TAIL_MARGIN

    def completes(self, ids: list[int], prompt_length: int) -> bool:
        """Whether the last id completed a stop string, given that no earlier one did.

        Args:
            ids: prompt and sampled tokens [P + R], R >= 1.
            prompt_length: P; what the prompt holds is never part of a stop.
        """
        if self._enders is not None and ids[-1] not in self._enders:
            return False
        text = decode(self._tokenizer, ids[max(prompt_length, len(ids) - self._tail) :])
        return any(stop in text for stop in self._stops)


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """Text of the ids as they are: special tokens (a tag may be one) and spaces are kept."""
    text = tokenizer.decode(
        token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def _tokens_that_may_end(
    tokenizer: PreTrainedTokenizerBase, characters: Collection[str]
) -> frozenset[int] | None:
    """Ids whose text holds one of the characters; None where only the text of all can tell.

    A byte of a multi-byte character decodes to a replacement character, and some tokenizers drop
    spaces at the edge of a text: for such characters every token is a candidate.
    """
    if not characters:
        return frozenset()
    if any(not char.isascii() or char.isspace() for char in characters):
        return None
    texts = tokenizer.batch_decode(
        [[i] for i in range(len(tokenizer))],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    return frozenset(i for i, text in enumerate(texts) if any(char in text for char in characters))
