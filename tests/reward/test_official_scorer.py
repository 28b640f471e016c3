"""The metrics agree with the official SQuAD scorer, as transformers carries it.

It is given text in which what looks the same is written the same, and never yes or no, which
HotpotQA's guard is for: both tested elsewhere.
"""

from __future__ import annotations

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.data.metrics.squad_metrics import compute_exact, compute_f1, normalize_answer

from zerosearch.core.text import plain_text
from zerosearch.reward.metrics import WHOLE_ANSWERS, exact_match, token_f1

WORDS = st.sampled_from(
    ["the", "The", "a", "an", "An", "Paris", "paris", "1,000", "1000", "3.5", "été", "ÉTÉ", "U.S.",
     "東京", "don't", "--", "?", "", " ", "\t", "\n", "½", "I", "İ", "ß", "&", "“x”", "a\u00a0b"]
)  # fmt: skip
TEXTS = st.one_of(st.lists(WORDS, max_size=6).map(" ".join), st.text(max_size=20))


@settings(max_examples=2000, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_f1_and_em_are_those_of_the_official_scorer(answer: str, golden: list[str]) -> None:
    # An answer of which nothing is left matches nothing here: the one departure, tested elsewhere.
    answer, golden = plain_text(answer), [plain_text(each) for each in golden]
    assume(WHOLE_ANSWERS.isdisjoint(map(normalize_answer, [answer, *golden])))
    told = [each for each in golden if normalize_answer(each)]
    f1, em = 0.0, 0.0
    if normalize_answer(answer) and told:
        f1 = max(compute_f1(each, answer) for each in told)
        em = max(compute_exact(each, answer) for each in told)
    assert abs(token_f1(answer, golden) - f1) < 1e-9
    assert abs(exact_match(answer, golden) - em) < 1e-9
