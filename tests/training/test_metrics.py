"""What a policy step reports, by hand-counted examples."""

import math
from typing import Any, get_args

import pytest

from zerosearch.reward.rubric import RewardScore, Rubric
from zerosearch.training import metrics as module
from zerosearch.training.metrics import (
    Costs,
    Means,
    likelihood_metrics,
    rollout_metrics,
    step_metrics,
)
from zerosearch.training.rollout_plan import SampledBatch
from zerosearch.types import (
    Document,
    Question,
    SearchError,
    SearchResult,
    StopReason,
    Trajectory,
    Turn,
)


def result(*texts: str, noisy: bool | None = False, **fields: Any) -> SearchResult:
    documents = tuple(Document(text=text) for text in texts)
    return SearchResult(documents=documents, requested=3, noisy=noisy, **fields)


def trajectory(
    answer: str | None, *results: SearchResult, golden: tuple[str, ...] = ("Lima",), **fields: Any
) -> Trajectory:
    """Searches with these results, then the answer; 3 sampled and 4 inserted tokens a search."""
    turns = [Turn(text="<search>x</search>", action="search", result=each) for each in results]
    text = "no idea" if answer is None else f"<answer>{answer}</answer>"
    turns.append(Turn(text=text, action="invalid" if answer is None else "answer"))
    sampled = ([True] * 3 + [False] * 4) * len(results) + [True] * 2
    return Trajectory(
        question=Question(uid="q", text="Capital of Peru?", golden_answers=golden),
        group=0,
        sibling=0,
        prompt_ids=[1],
        response_ids=list(range(len(sampled))),
        sampled=sampled,
        logprobs=[0.0] * len(sampled),
        turns=turns,
        **fields,
    )


def reduced(*trajectories: Trajectory) -> dict[str, float]:
    rubric = Rubric()
    scores = [rubric.score(each) if each.valid else None for each in trajectories]
    return rollout_metrics(trajectories, scores)


FAILED: dict[str, Any] = {"error": "search engine x: down", "stop_reason": "search_failed"}


def test_rewards_lengths_and_searches_are_averaged_over_trajectories() -> None:
    found = reduced(
        trajectory("Lima", result("a"), result("b", "c")),
        trajectory("Lima Peru"),
        trajectory(None, result("d"), stop_reason="eos"),
    )
    expected = {
        "reward/f1": (1 + 2 / 3 + 0) / 3,
        "reward/em": 1 / 3,
        "reward/cover_em": 2 / 3,
        "reward/total": (1 + 2 / 3 + 0) / 3,
        "rollout/turns": (3 + 1 + 2) / 3,
        "rollout/searches": 1.0,
        "rollout/tokens": (8 + 2 + 5) / 3,  # sampled ones; inserted tokens are nobody's work
        "rollout/valid": 1.0,
        "rollout/truncated": 0.0,
        "search/failed": 0.0,
        "search/documents": 4 / 3,  # over searches
        "stop/answer": 2 / 3,
        "stop/eos": 1 / 3,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_defect_13_a_failed_search_is_counted_and_not_scored() -> None:
    good = trajectory("Lima", result("a"))
    broken = trajectory(None, result("a", "b", "c"), **FAILED)
    found, alone = reduced(good, broken), reduced(good)
    assert (found.pop("search/failed"), found.pop("rollout/valid")) == (0.5, 0.5)
    assert (alone.pop("search/failed"), alone.pop("rollout/valid")) == (0.0, 1.0)
    assert found == alone, "the failed episode is in no other figure"


def test_defect_13_a_step_in_which_everything_failed_has_no_reward() -> None:
    found = reduced(trajectory(None, **FAILED))
    assert found == {"rollout/valid": 0.0, "search/failed": 1.0}


@pytest.mark.parametrize(
    ("reason", "truncated"),
    [
        ("answer", 0.0),
        ("eos", 0.0),
        ("max_turns", 0.0),
        ("invalid", 0.0),
        ("turn_budget", 1.0),
        ("context", 1.0),
    ],
)
def test_invariant_10_every_stop_reason_is_reported(reason: StopReason, truncated: float) -> None:
    found = reduced(trajectory(None, stop_reason=reason))
    stops = {name: value for name, value in found.items() if name.startswith("stop/")}
    assert set(stops) == {f"stop/{each}" for each in get_args(StopReason)} - {
        "stop/search_failed",
        "stop/model_failed",
        "stop/reward_failed",
    }
    assert {name for name, value in stops.items() if value} == {f"stop/{reason}"}
    assert found["rollout/truncated"] == truncated


def test_invariant_14_what_was_recorded_of_each_search_is_reported() -> None:
    found = reduced(
        trajectory("x", result("a", latency_s=0.5), result(noisy=True, latency_s=1.5)),
        trajectory("x", result("b", latency_s=4.0, cached=True)),
    )
    assert found["search/latency_s"] == pytest.approx(2.0)
    assert found["search/empty"] == pytest.approx(1 / 3)
    assert found["search/cached"] == pytest.approx(1 / 3)
    assert found["search/noisy"] == pytest.approx(1 / 3)


def test_answers_in_useful_and_in_noisy_results_are_counted_apart() -> None:
    found = reduced(
        trajectory("x", result("no", "Lima it is.")),
        trajectory("x", result("Limage")),
        trajectory("x", result("LIMA!", noisy=True)),
        trajectory("x", result("no", noisy=True), result("no", noisy=True)),
    )
    assert found["search/answer_in_useful"] == pytest.approx(1 / 2)
    assert found["search/answer_in_noisy"] == pytest.approx(1 / 3)


def test_defect_04_an_answer_inside_another_word_is_not_found() -> None:
    document = "The state of Nevada has Indiana's neighbours as friends."
    found = reduced(trajectory("x", result(document, noisy=True), golden=("IN", "?!", "The")))
    assert found["search/answer_in_noisy"] == 0.0


def test_engines_that_choose_no_quality_report_none() -> None:
    found = reduced(trajectory("x", result("Lima", noisy=None)))
    assert not {"search/noisy", "search/answer_in_useful", "search/answer_in_noisy"} & set(found)


def test_what_was_wrong_with_replies_is_counted_per_search() -> None:
    found = reduced(
        trajectory("x", result("a", problems=("too_few", "extra_text"), attempts=2)),
        trajectory("x", result("b", "c", "d", problems=("too_few",)), result()),
    )
    assert found["search/problem/too_few"] == pytest.approx(2 / 3)
    assert found["search/problem/extra_text"] == pytest.approx(1 / 3)
    assert found["search/attempts"] == pytest.approx(4 / 3)
    assert found["search/incomplete"] == pytest.approx(2 / 3)


def test_costs_add_up_over_steps_and_count_what_a_failed_trajectory_spent() -> None:
    costs = Costs()
    paid = result("a", tokens=100, cost_usd=0.5, attempts=2)
    hit = result("a", cached=True, attempts=0)
    costs.add([trajectory("x", paid, hit)])
    found = costs.add([trajectory(None, paid, **FAILED)])
    assert found == {"cost/searches": 3, "cost/calls": 4, "cost/tokens": 200, "cost/usd": 1.0}


def test_evaluations_and_searches_that_failed_are_paid_for() -> None:
    costs = Costs()
    paid = trajectory("x", result("a", tokens=100, cost_usd=0.5, attempts=2))
    lost = trajectory(None, **FAILED)
    lost.end("search_failed", SearchError("http://sim", "no document", tokens=7, cost_usd=0.25))
    costs.add([paid, lost])
    costs.add_evaluation([paid, lost])
    costs.charge(5, 1.0)
    assert costs.totals == {
        "cost/searches": 1,
        "cost/calls": 2,
        "cost/tokens": 219,
        "cost/usd": 2.5,
    }
    assert costs.usd == 2.5


def make_sampled(rounds: float | None, dropped: list[Trajectory]) -> SampledBatch:
    kept = [trajectory("Lima"), trajectory(None)]
    return SampledBatch(
        step=0,
        noise_probability=0.0,
        trajectories=kept,
        dropped=dropped,
        rounds=rounds,
        weight_steps={},
        seconds=1.0,
    )


def step_of(sampled: SampledBatch) -> dict[str, float]:
    rubric = Rubric()
    scores = [rubric.score(each) for each in sampled.trajectories]
    return step_metrics(sampled, scores, Costs(), 0.5)


def test_what_was_dropped_costs_time_and_searches_but_is_not_among_the_rewards() -> None:
    paid = result("a", tokens=100)
    dropped = [trajectory("Lima", paid), trajectory("Lima"), trajectory(None, paid, **FAILED)]
    found = step_of(make_sampled(1.0, [*dropped, trajectory("Lima")]))
    assert found["reward/f1"] == 0.5
    assert found["reward/f1_played"] == pytest.approx(4 / 5), "of those that are valid"
    assert found["sampling/dropped_groups"] == pytest.approx(4 / 6)
    assert found["sampling/rounds"] == 1.0
    assert (found["cost/searches"], found["cost/tokens"]) == (2, 200)
    assert found["throughput/trajectories_per_s"] == 6 / 0.5
    assert found["throughput/sampled_tokens_per_s"] == (6 * 2 + 2 * 3) / 0.5
    assert found["throughput/tokens_per_s"] == (6 * (1 + 2) + 2 * 7) / 0.5


def test_without_replacing_nothing_is_said_about_it() -> None:
    found = step_of(make_sampled(None, []))
    assert not [name for name in found if name.startswith("sampling/") or "played" in name]
    found = step_of(make_sampled(0.0, []))
    assert (found["sampling/dropped_groups"], found["sampling/rounds"]) == (0.0, 0.0)
    assert found["reward/f1_played"] == found["reward/f1"] == 0.5


def test_scores_and_trajectories_belong_together() -> None:
    with pytest.raises(ValueError):
        rollout_metrics([trajectory("x")], [])
    score = RewardScore(total=-3.0, f1=0.25, em=0.0, cover_em=1.0, terms={"short": -3.0})
    found = rollout_metrics([trajectory("x")], [score])
    assert (found["reward/total"], found["reward/f1"]) == (-3.0, 0.25)


def test_terms_are_reported_where_there_are_several() -> None:
    assert not [name for name in reduced(trajectory("x")) if name.startswith("reward/term/")]
    found = rollout_metrics(
        [trajectory("x"), trajectory("y")],
        [
            RewardScore(total=0.9, f1=1.0, em=1.0, cover_em=1.0, terms={"f1": 1.0, "mute": -1.0}),
            RewardScore(total=0.0, f1=0.0, em=0.0, cover_em=0.0, terms={"f1": 0.0, "mute": 0.0}),
        ],
    )
    assert (found["reward/term/f1"], found["reward/term/mute"]) == (0.5, -0.5)


def test_an_empty_answer_is_none_though_it_ends_the_episode() -> None:
    found = reduced(trajectory("Lima"), trajectory(""), trajectory("Rome"), trajectory(None))
    assert (found["rollout/answered"], found["stop/answer"]) == (0.5, 1.0)


def test_text_beside_the_actions_is_measured_per_turn() -> None:
    episode = trajectory("Lima", result("a"))
    assert reduced(episode)["rollout/broken_tags"] == 0.0
    episode.turns[0].text = "<think]<think] a b c d a b c d <search>x</search>"
    found = reduced(episode, trajectory("Lima", result("a")))
    assert found["rollout/broken_tags"] == 2 / 4  # of four turns
    # words and marks: < think ] < think ] a b c d a b c d; of eleven 4-grams one is a repetition
    assert found["rollout/text_repetition"] == pytest.approx(1 / 11 / 4)


def test_the_likelihood_of_right_episodes_counts_each_sampled_token() -> None:
    right, wrong = trajectory("Lima", result("a")), trajectory("Rome")
    right.logprobs = [-1.0] * 3 + [0.0] * 4 + [-0.5] * 2  # the four were inserted
    wrong.logprobs = [-9.0, -9.0]
    scores = [Rubric().score(each) for each in (right, wrong)]
    assert likelihood_metrics([right, wrong], scores) == {"rollout/right_nll": 4 / 5}
    assert likelihood_metrics([wrong, wrong], [scores[1], None]) == {}, "nothing was right"


# -- means over ranks -----------------------------------------------------------------------------


def test_a_mean_is_weighted_by_its_counts() -> None:
    means = Means()
    means.add("a", 3.0)
    means.add("a", 5.0, 3.0)
    means.add("b", True)
    means.add("nothing", 0.0, 0.0)
    assert means.reduced() == {"a": 2.0, "b": 1.0}
    assert Means().reduced() == {}


def test_invariant_06_ranks_are_merged_by_counts_whatever_names_each_has_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = Means(), Means()
    one.add("tokens", 10.0, 2.0)
    one.add("only here", 4.0)
    other.add("tokens", 2.0, 1.0)
    parts = [dict(one._sums), dict(other._sums)]
    monkeypatch.setattr(module, "gather_objects", lambda value: parts)
    assert one.reduced() == other.reduced() == {"tokens": 4.0, "only here": 4.0}


def test_a_value_that_is_not_finite_is_not_hidden() -> None:
    means = Means()
    means.add("loss/policy", math.nan)
    means.add("loss/policy", 1.0)
    assert math.isnan(means.reduced()["loss/policy"])
