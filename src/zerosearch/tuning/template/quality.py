"""Which prompts of a simulation-tuning data set ask for noisy documents."""

from __future__ import annotations

import re
from collections.abc import Sequence

from zerosearch.core.errors import InputError
from zerosearch.tuning.template.alignment import align, drawn, tokens_of

_NOISY = re.compile(
    r"nois|irrelevant|unhelpful|useless|mislead|incorrect|distract|unrelated|wrong", re.IGNORECASE
)
_CONTEXT_CHARS = 24  # of constant text beside a word, so that a query with that word is not taken


def split_by_quality(prompts: Sequence[str], noisy_text: str | None) -> list[bool | None]:
    """Per prompt: noisy (True), useful (False), or neither of the two (None).

    Args:
        prompts: of both qualities.
        noisy_text: what only noisy prompts hold; None: found out from the words that change between
            two values over the prompts, one of which means noise.

    Raises:
        InputError: there are no two qualities.
    """
    if noisy_text is not None:
        qualities: list[bool | None] = [noisy_text in prompt for prompt in prompts]
        if len(set(qualities)) < 2:
            raise InputError(
                f"--noisy {noisy_text!r} is in {'all' if qualities[0] else 'none'} of the prompts: "
                "give a text that only those have which ask for noisy documents"
            )
        return qualities
    noisy, useful = _find_marks(prompts)
    return [True if noisy in text else False if useful in text else None for text in prompts]


def _find_marks(prompts: Sequence[str]) -> tuple[str, str]:
    """A text of all noisy prompts and one of all useful ones, both constant."""
    sample = drawn(prompts)
    skeleton = align(sample)
    rows = [row for prompt in sample if (row := skeleton.fill(prompt)) is not None]
    for gap in range(skeleton.gaps):
        before = skeleton.constants[gap][-_CONTEXT_CHARS:]
        after = skeleton.constants[gap + 1][:_CONTEXT_CHARS]
        values = [row[gap] for row in rows]
        words = [tokens_of(value) or [""] for value in values]
        for found, left, right in (
            (values, before, after),
            ([each[0] for each in words], before, ""),
            ([each[-1] for each in words], "", after),
        ):
            kinds = sorted(set(found), key=lambda kind: bool(_NOISY.search(kind)))
            if len(kinds) == 2 and _NOISY.search(kinds[1]) and not _NOISY.search(kinds[0]):
                return left + kinds[1] + right, left + kinds[0] + right
    raise InputError(
        "the rows show no word that changes between useful and noisy prompts: give rows of both "
        "qualities, or name a text that only noisy prompts hold with --noisy TEXT"
    )
