"""What the policy writes beside its queries and answers, and how far it has degenerated.

The reward sees actions alone, so this text may decay long before the reward falls: into rows of
broken tags, or one phrase again and again (seen in Search-R1's runs, jinyansu1.github.io, 2026).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from zerosearch.core.controls import THINK
from zerosearch.rollout.tags import ANSWER, INFORMATION, SEARCH

_NAMES = "|".join(tags[0].strip("<>") for tags in (THINK, SEARCH, INFORMATION, ANSWER))
# Also what was meant for a tag: "<think]", "</ answer>", "<Search>". Spaces are taken whole (*+):
# given back one by one, 50,000 of them would take half a minute.
_TAG = re.compile(rf"<\s*+/?\s*+(?:{_NAMES})\b>?", re.IGNORECASE)
_CLOSING: dict[str, str] = dict((THINK, SEARCH, ANSWER))  # information is not the policy's to write
_WORD = re.compile(r"\w+|[^\w\s]")
_WORDS = 4  # as in seq-rep-4 of arXiv 1908.04319


@dataclass(kw_only=True, slots=True, frozen=True)
class FreeText:
    """One turn without its queries and answers; thoughts belong to it, their whole tags do not."""

    text: str
    broken_tags: int

    @property
    def repetition(self) -> float:
        """Share of its 4-grams of words and marks that occurred before in it, from 0 to 1."""
        words = _WORD.findall(self.text)
        grams = [tuple(words[at : at + _WORDS]) for at in range(len(words) - _WORDS + 1)]
        return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def read_free_text(sampled_text: str) -> FreeText:
    """Take queries and answers out of a turn, and count the tags that are not part of a pair.

    A pair is an opening tag and its closing one with no other tag between them.
    """
    tags = list(_TAG.finditer(sampled_text))
    parts, broken, end, index = [], 0, 0, 0
    while index < len(tags):
        tag, *after = tags[index : index + 2]
        parts.append(sampled_text[end : tag.start()])
        if after and _CLOSING.get(tag[0]) == after[0][0]:
            if tag[0] == THINK[0]:
                parts.append(sampled_text[tag.end() : after[0].start()])
            end, index = after[0].end(), index + 2
        else:
            parts.append(tag[0])
            broken, end, index = broken + 1, tag.end(), index + 1
    parts.append(sampled_text[end:])
    return FreeText(text="".join(parts), broken_tags=broken)
