"""Values of tokens for a page: how much of the text that is shown each colours, and how strongly.

A page is read by a browser, which counts a text in units of UTF-16, and shows it with what would
act written out, and cut where it is very long.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

from zerosearch.report.run_folder import number

_HUNDREDTHS = 100  # of a nat: what a page keeps of a value


def shown_values(
    tokens: Any, text: str, most: int, shown: Callable[[str], str]
) -> dict[str, list[int]] | None:
    """What a page needs to colour the text of a turn.

    A character of several tokens, such as a rare letter of three bytes, is as unlikely as all of
    them together: their log-probs and entropies are added up. Tokens without a character after the
    last one, such as the end of the text, have no place in it.

    Args:
        tokens: of a turn in the transcripts; may be anything.
        text: of the turn.
        most: characters of it that are shown.
        shown: what is shown instead of them.

    Returns:
        `units` of each piece of the text, and `logprobs` and, where they are known, `entropies` in
        hundredths of a nat; None where they do not fit the text.
    """
    if not isinstance(tokens, dict) or not isinstance(lengths := tokens.get("characters"), list):
        return None
    if not all(type(each) is int and each >= 0 for each in lengths) or sum(lengths) != len(text):
        return None
    names = [name for name in ("logprobs", "entropies") if name in tokens]
    columns = [_numbers(tokens[name], len(lengths)) for name in names]
    if "logprobs" not in names or None in columns:
        return None
    found: dict[str, list[int]] = {"units": [], **{name: [] for name in names}}
    sums = [0.0] * len(names)
    rows = zip(*[column or () for column in columns], strict=True)
    for end, length, values in zip(accumulate(lengths), lengths, rows, strict=True):
        sums = [total + value for total, value in zip(sums, values, strict=True)]
        if length == 0:
            continue
        piece = text[end - length : min(end, most)]
        if not piece:
            break
        found["units"].append(len(shown(piece).encode("utf-16-le")) // 2)
        for name, total in zip(names, sums, strict=True):
            found[name].append(round(total * _HUNDREDTHS))
        sums = [0.0] * len(names)
    return found


def _numbers(values: Any, count: int) -> list[float] | None:
    """A list of so many finite numbers, or None."""
    if not isinstance(values, list) or len(values) != count:
        return None
    found = [number(value) for value in values]
    return None if None in found else [value for value in found if value is not None]
