"""The constant text of prompts that were filled into one form, and what was filled in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from zerosearch.core.seeding import derive_random

SAMPLE = 150  # prompts that are aligned; all others only have to fit
_ROUNDS = 6
# Stands between the system message and the prompt where both are aligned as one text. For private
# use in Unicode, so that neither holds it.
SYSTEM_END = "\ue000"
_TOKEN = re.compile(rf"{SYSTEM_END}|\s*\w+|\s*[^\w\s{SYSTEM_END}]|\s+")
_WORD = re.compile(r"\w")
_GAP = object()  # equals nothing in a prompt
# What may stand around a filled-in value, but is not part of it.
_DELIMITERS = " \t\r\n\"'`“”‘’«»"


class Skeleton:
    """Constant texts with a gap between each two: `constants[0] gap constants[1] gap ...`.

    The first and the last may be empty.
    """

    def __init__(self, constants: Sequence[str]) -> None:
        self.constants = tuple(constants)

    @property
    def gaps(self) -> int:
        """Number of gaps."""
        return len(self.constants) - 1

    def fill(self, prompt: str) -> list[str] | None:
        """What stands in the gaps of a prompt, the first ones as short as can be; None: no fit."""
        return next(self.fills(prompt), None)

    def fills(self, prompt: str) -> Iterator[list[str]]:
        """Every way to fill the gaps: a constant may occur within a value, too."""
        first, *others = self.constants
        if not prompt.startswith(first):
            return
        if others:
            yield from _fills(prompt, len(first), others)
        elif prompt == first:
            yield []


def _fills(prompt: str, start: int, constants: Sequence[str]) -> Iterator[list[str]]:
    constant, *others = constants
    if not others:
        end = len(prompt) - len(constant)
        if end >= start and prompt.endswith(constant):
            yield [prompt[start:end]]
        return
    found, fits = prompt.find(constant, start), True
    while found >= 0 and fits:
        fits = False  # where the rest does not fit here, it has still less room further on
        for values in _fills(prompt, found + len(constant), others):
            fits = True
            yield [prompt[start:found], *values]
        found = prompt.find(constant, found + 1)


def tokens_of(text: str) -> list[str]:
    """Words and signs with the white space before them; joined they are the text again."""
    return _TOKEN.findall(text)


def drawn(prompts: Sequence[str]) -> list[str]:
    """A sample; drawn, because data sets put useful and noisy rows in turn."""
    if len(prompts) <= SAMPLE:
        return list(prompts)
    return derive_random("sample of prompts", len(prompts)).sample(list(prompts), SAMPLE)


def align(prompts: Sequence[str], rare: float = 0.0) -> Skeleton:
    """The skeleton that all prompts share, by words.

    Pairs of texts are aligned by their longest common stretches first, so that instructions anchor
    before words that happen to be shared do. White space and quotes at both ends of all values of
    a gap count as constant.

    Args:
        prompts: filled into one form, mostly.
        rare: share of prompts that may lose their own wording to that of all others.
    """
    counts = Counter(token for prompt in prompts for token in set(tokens_of(prompt)))
    everywhere = {token for token, n in counts.items() if n >= (1 - rare) * len(prompts)}
    common: list[object] | None = None
    for prompt in dict.fromkeys(prompts):
        # what is not in every prompt cannot be constant: it must not pair either
        tokens = [token if token in everywhere else object() for token in tokens_of(prompt)]
        common = tokens if common is None else _shared(common, tokens)
    assert common is not None, "align() needs a prompt"
    constants = [""]
    for token in common:
        if isinstance(token, str):
            constants[-1] += token
        else:
            constants.append("")
    skeleton = _close_later(Skeleton(constants), prompts)
    return _trim_values(_without_rare(skeleton, prompts, rare), prompts)


def align_all(prompts: Sequence[str], rare: float = 0.0) -> Skeleton:
    """`align` on a sample that grows by prompts that do not fit yet, as long as this helps."""
    sample = drawn(prompts)
    best, best_misfits = Skeleton([""]), list(prompts)
    for _ in range(_ROUNDS):
        skeleton = align(sample, rare)
        misfits = [prompt for prompt in prompts if skeleton.fill(prompt) is None]
        if len(misfits) >= len(best_misfits):
            return best
        best, best_misfits = skeleton, misfits
        if len(misfits) <= rare * len(prompts):
            return best
        sample += drawn(misfits)
    return best


def _shared(common: list[object], tokens: list[object]) -> list[object]:
    """What two texts share, with a gap wherever either has something else."""
    matcher = SequenceMatcher(None, common, tokens, autojunk=False)
    shared: list[object] = []
    end_common = end_tokens = 0
    for block in matcher.get_matching_blocks():  # the last one is empty, at both ends
        differs = block.a > end_common or block.b > end_tokens
        if differs and shared[-1:] != [_GAP]:
            shared.append(_GAP)
        shared += common[block.a : block.a + block.size]
        end_common, end_tokens = block.a + block.size, block.b + block.size
    return shared


def _close_later(skeleton: Skeleton, prompts: Sequence[str]) -> Skeleton:
    """Let a sign that closes a value be its last, not its first: "(the (old) town)"."""
    constants = list(skeleton.constants)
    index = 1
    while index < len(constants) - 1:
        rows = _filled(Skeleton(constants), prompts)
        sign = constants[index]
        closes = rows and all((sign + row[index]).endswith(sign) for row in rows)
        if closes and not _WORD.search(sign):
            constants[index : index + 2] = [sign + constants[index + 1]]
        else:
            index += 1
    return Skeleton(constants)


def _without_rare(skeleton: Skeleton, prompts: Sequence[str], rare: float) -> Skeleton:
    """Make constant what all prompts but a few have in a gap."""
    rows = _filled(skeleton, prompts)
    constants = [skeleton.constants[0]]
    for gap in range(skeleton.gaps):
        ((value, count),) = Counter(row[gap] for row in rows).most_common(1)
        if count < len(rows) and len(rows) - count <= rare * len(rows):
            constants[-1] += value + skeleton.constants[gap + 1]
        else:
            constants.append(skeleton.constants[gap + 1])
    return Skeleton(constants)


def _trim_values(skeleton: Skeleton, prompts: Sequence[str]) -> Skeleton:
    """Give what surrounds all values of a gap to the constants beside it."""
    filled = _filled(skeleton, prompts)
    constants = list(skeleton.constants)
    for gap in range(skeleton.gaps):
        values = [row[gap] for row in filled if row[gap]]
        if not values or len(values) < len(filled):
            continue  # an optional text keeps its own white space
        head = _common_delimiters(values)
        rest = [value[len(head) :] for value in values]
        tail = _common_delimiters([value[::-1] for value in rest])[::-1]
        constants[gap] += head
        constants[gap + 1] = tail + constants[gap + 1]
    return Skeleton(constants)


def _filled(skeleton: Skeleton, prompts: Sequence[str]) -> list[list[str]]:
    return [values for prompt in prompts if (values := skeleton.fill(prompt)) is not None]


def _common_delimiters(texts: Sequence[str]) -> str:
    """Delimiters that all texts begin with."""
    head = ""
    for characters in zip(*texts, strict=False):
        if len(set(characters)) > 1 or characters[0] not in _DELIMITERS:
            break
        head += characters[0]
    return head
