"""The figures that the official scorers of benchmarks give: to compare with papers that used them.

They differ from ours in the normal form of a text, and in an answer of which nothing is left: it
equals another such. Written after `hotpot_evaluate_v1.py` of github.com/hotpotqa/hotpot, which
github.com/Alab-NII/2wikimultihop takes over, and `evaluation/triviaqa_evaluation.py` of
github.com/mandarjoshi90/triviaqa; of several golden answers the best counts, as in the latter.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from zerosearch.reward.metrics import WHOLE_ANSWERS

Scorer = Literal["hotpotqa", "triviaqa"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = {
    "hotpotqa": str.maketrans("", "", string.punctuation),
    "triviaqa": str.maketrans(dict.fromkeys(string.punctuation + "‘’´", " ")),
}


def official_scores(
    scorer: Scorer, prediction: str | None, golden_answers: Sequence[str]
) -> tuple[float, float]:
    """EM and F1 of one question as the scorer gives them, each in [0, 1].

    Args:
        scorer: "hotpotqa", also of 2WikiMultiHopQA, or "triviaqa".
        prediction: the answer; None, where there is none, is wrong.
        golden_answers: at least one.
    """
    if prediction is None:
        return 0.0, 0.0
    guess = _normal(prediction, scorer)
    forms = [_normal(golden, scorer) for golden in golden_answers]
    return float(guess in forms), max(_F1[scorer](guess, form) for form in forms)


def _normal(text: str, scorer: Scorer) -> str:
    text = text.lower().translate(_PUNCTUATION[scorer])
    return " ".join(_ARTICLES.sub(" ", text).split())


def _f1(guess: str, golden: str) -> float:
    tokens, golden_tokens = guess.split(), golden.split()
    shared = (Counter(tokens) & Counter(golden_tokens)).total()
    return 2.0 * shared / (len(tokens) + len(golden_tokens)) if shared else 0.0


def _guarded_f1(guess: str, golden: str) -> float:
    guarded = guess != golden and not WHOLE_ANSWERS.isdisjoint((guess, golden))
    return 0.0 if guarded else _f1(guess, golden)


_F1: dict[Scorer, Callable[[str, str], float]] = {"hotpotqa": _guarded_f1, "triviaqa": _f1}
