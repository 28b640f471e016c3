import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.answer_metrics_ranks import QUESTIONS, compute_on_rank
from tests.helpers.ranks import run_ranks
from zerosearch.reward.metrics import (
    AnswerMetrics,
    bootstrap_interval,
    cover_match,
    exact_match,
    normalize_answer,
    token_f1,
)

METRICS = [exact_match, cover_match, token_f1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Beatles", "beatles"),
        ("  An  apple a\tday ", "apple day"),
        ("U.S.A.", "usa"),
        ("Theatre", "theatre"),
        ("A-ha!", "aha"),  # punctuation goes before articles, as in SQuAD
        ("The", ""),
        ("?!", ""),
        ("Zürich", "zürich"),
        ("Beyonce\u0301", "beyoncé"),  # decomposed
        ("Beyonce", "beyonce"),
        ("\uff2e\uff21\uff33\uff21 \uff11\uff19", "nasa 19"),  # full-width
        ("rock ’n’ roll", "rock n roll"),
        ("“Heroes” «ok» l´été", "heroes ok lété"),
        ("ﬁne", "fine"),  # a ligature
    ],
)
def test_normalize_answer_follows_squad(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "golden", "em", "cover", "f1"),
    [
        ("the Beatles!", ["Beatles"], 1.0, 1.0, 1.0),
        ("Paris in France", ["Paris"], 0.0, 1.0, 0.5),  # 2 * 1 / (3 + 1)
        ("Paris", ["Paris France"], 0.0, 0.0, 2 / 3),  # 2 * 1 / (1 + 2)
        ("german", ["man"], 0.0, 1.0, 0.0),  # characters, not tokens
        ("new new york", ["new york city"], 0.0, 0.0, 2 * 2 / 6),  # a bag: "new" counts once
        ("city york new", ["new york city"], 0.0, 0.0, 1.0),  # order does not matter to F1
        ("oslo", ["Bergen", "Oslo", "Oslo Norway"], 1.0, 1.0, 1.0),  # best over golden answers
        ("london bridge", ["london tower bridge", "bridge"], 0.0, 1.0, 0.8),
        ("rome", ["Oslo"], 0.0, 0.0, 0.0),
        ("yes no", ["yes"], 0.0, 1.0, 0.0),  # HotpotQA's guard
        ("yes", ["yes no"], 0.0, 0.0, 0.0),
        ("No.", ["no"], 1.0, 1.0, 1.0),
        ("no", ["noanswer", "no way", "No"], 1.0, 1.0, 1.0),
        ("no way", ["yes", "no way home"], 0.0, 0.0, 0.8),
        ("Ren\u00e9e", ["Rene\u0301e"], 1.0, 1.0, 1.0),
        ("Renee", ["Rene\u0301e"], 0.0, 0.0, 0.0),
        ("The Emperor’s “Heroes”", ['emperor\'s "heroes"'], 1.0, 1.0, 1.0),
        (None, ["Oslo"], 0.0, 0.0, 0.0),
        ("", ["Oslo"], 0.0, 0.0, 0.0),
        ("Oslo", [], 0.0, 0.0, 0.0),
    ],
)
def test_metrics_match_hand_computed_values(
    prediction: str | None, golden: list[str], em: float, cover: float, f1: float
) -> None:
    assert exact_match(prediction, golden) == em
    assert cover_match(prediction, golden) == cover
    assert token_f1(prediction, golden) == pytest.approx(f1)


@pytest.mark.parametrize("metric", METRICS)
def test_defect_04_empty_normal_forms_match_nothing(metric) -> None:
    """The reference: a golden answer that normalises to "" is a substring of everything."""
    assert metric("Oslo", ["The"]) == 0.0
    assert metric("the", ["The"]) == 0.0
    assert metric("", ["?!"]) == 0.0
    assert metric("Oslo", ["The", "Oslo"]) == 1.0


def test_defect_04_exact_match_is_not_a_substring_test() -> None:
    assert exact_match("it is Oslo, Norway", ["Oslo"]) == 0.0
    assert exact_match("Oslo", ["Oslo, Norway"]) == 0.0


def test_defect_04_f1_is_recorded_as_f1_and_em_as_em() -> None:
    metrics = AnswerMetrics()
    metrics.update("Paris in France", ["Paris"])
    result = metrics.compute()
    assert (result["em"].item(), result["f1"].item(), result["cover_em"].item()) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("metric", METRICS)
def test_one_string_of_golden_answers_is_refused(metric) -> None:
    with pytest.raises(ValueError, match=r"golden_answers='Oslo'.*pass a list"):
        metric("o", "Oslo")


@given(prediction=st.text(), golden=st.lists(st.text(), max_size=4))
def test_metrics_are_shares_and_exact_implies_the_others(prediction, golden) -> None:
    em, cover, f1 = (metric(prediction, golden) for metric in METRICS)
    assert em in (0.0, 1.0)
    assert cover in (0.0, 1.0)
    assert 0.0 <= f1 <= 1.0
    assert em <= cover
    assert em <= f1


@given(st.text())
def test_every_text_matches_itself_unless_nothing_is_left_of_it(text: str) -> None:
    expected = 1.0 if normalize_answer(text) else 0.0
    assert [metric(text, [text]) for metric in METRICS] == [expected] * 3


def test_answer_metrics_count_every_question() -> None:
    metrics = AnswerMetrics()
    metrics.update("Oslo", ["Oslo"])
    metrics.update("Paris in France", ["Paris"])
    metrics.update(None, ["Rome"])
    metrics.update("Rome", ["Rome"], failed=True)  # counted, as unanswered
    result = {name: value.item() for name, value in metrics.compute().items()}
    assert result["f1"] == pytest.approx(1.5 / 4)
    assert result["em"] == pytest.approx(1 / 4)
    assert result["cover_em"] == pytest.approx(2 / 4)
    assert result["answered"] == pytest.approx(2 / 4)
    assert result["failed"] == pytest.approx(1 / 4)
    assert result["count"] == 4
    for name in ("f1", "em", "cover_em"):
        assert result[f"{name}_low"] <= result[name] <= result[f"{name}_high"]


def test_answer_metrics_start_over_after_reset() -> None:
    metrics = AnswerMetrics()
    metrics.update("Oslo", ["Oslo"])
    metrics.reset()
    metrics.update("Rome", ["Oslo"])
    assert metrics.compute()["em"] == 0.0
    assert metrics.compute()["count"] == 1


def test_answer_metrics_without_a_question_say_so() -> None:
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match="0 questions"),
    ):
        AnswerMetrics().compute()


def test_answer_metrics_refuse_a_bootstrap_without_resamples() -> None:
    with pytest.raises(ValueError, match="resamples=0"):
        AnswerMetrics(resamples=0)


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    share, count = 0.3, 400
    scores = (torch.arange(count) < share * count).double()[:, None]
    low, high = bootstrap_interval(scores)
    half_width = 1.96 * math.sqrt(share * (1 - share) / count)
    assert low.item() == pytest.approx(share - half_width, abs=0.008)
    assert high.item() == pytest.approx(share + half_width, abs=0.008)


def test_bootstrap_is_fixed_by_its_seed_and_ignores_order() -> None:
    scores = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shuffled = scores[torch.randperm(50, generator=torch.Generator().manual_seed(2))]
    torch.testing.assert_close(bootstrap_interval(scores), bootstrap_interval(shuffled))
    other_seed = bootstrap_interval(scores, seed=1)
    assert not torch.equal(bootstrap_interval(scores)[0], other_seed[0])


def test_bootstrap_in_chunks_covers_all_resamples() -> None:
    scores = (torch.arange(30_000) % 2).double()[:, None]  # 33 resamples a chunk
    low, high = bootstrap_interval(scores, resamples=100)
    assert 0.49 < low.item() < 0.5 < high.item() < 0.51


def test_interval_of_a_constant_score_is_a_point() -> None:
    low, high = bootstrap_interval(torch.ones(7, 2, dtype=torch.float64))
    assert low.tolist() == high.tolist() == [1.0, 1.0]


def test_ranks_with_unequal_counts_weigh_every_question_the_same(tmp_path: Path) -> None:
    """Two processes hold 3 + 1, then 4 + 0 of the questions; one process holds all of them."""
    splits = ((3, 1), (4, 0))
    alone = AnswerMetrics()
    for prediction, golden, failed in QUESTIONS:
        alone.update(prediction, golden, failed=failed)
    run_ranks(2, compute_on_rank, splits, str(tmp_path))
    for rank in range(2):
        for result in torch.load(tmp_path / f"{rank}.pt"):
            torch.testing.assert_close(result, alone.compute())
