"""The default rules on the metrics of runs: a healthy one, and some that collapse."""

from __future__ import annotations

import csv
import random
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest

from tests.helpers.configs import ROOT, compose_config
from tests.helpers.runs import read_metrics, train_by_command
from zerosearch.callbacks.health_rules import RuleTracker

# Recorded with seed 0: `rollout/answered` of the quickstart, and 1 minus that of a run with PAYS.
QUICKSTART = [
    *(0.977, 1.0, 0.953, 0.969, 0.984, 0.977, 0.992, 0.992, 0.969, 0.969, 0.984, 0.992, 1.0, 0.961),
    *(0.977, 0.93, 0.945, 0.984, 0.969, 0.961, 0.992, 0.953, 0.977, 0.961, 0.961, 0.969, 0.961),
    *(0.953, 0.953, 0.961),
]
BROKEN_TAGS = [  # of the quickstart
    *(
        0.006,
        0.017,
        0.018,
        0.028,
        0.034,
        0.01,
        0.0,
        0.014,
        0.033,
        0.023,
        0.009,
        0.004,
        0.004,
        0.016,
    ),
    *(0.0, 0.007, 0.007, 0.0, 0.011, 0.007, 0.0, 0.003, 0.011, 0.003, 0.004, 0.0, 0.006, 0.01),
    *(0.01, 0.003),
]
SILENT = [
    *(0.023, 0.008, 0.047, 0.023, 0.0, 0.047, 0.016, 0.094, 0.07, 0.07, 0.172, 0.109, 0.203, 0.203),
    *(0.188, 0.273, 0.227, 0.289, 0.242, 0.383, 0.422, 0.328, 0.477, 0.516, 0.438, 0.531, 0.461),
    *(0.5, 0.555, 0.461),
]
PAYS = [
    "rubric=search_r1pp",
    "rubric.terms.f1.weight=0",
    "rubric.terms.no_search.weight=0",
    "rubric.terms.no_answer.weight=-1",
    "algorithm.kl_coefficient=0.01",
]


@cache
def default_rules() -> Any:
    return hydra.utils.instantiate(compose_config(Path("nowhere")).health, _convert_="all")


def fires_at(name: str, values: list[float]) -> int | None:
    """The policy step, from 1, after which a default rule fires; None where it does not."""
    tracker = RuleTracker(default_rules()[name])
    for step, value in enumerate(values, start=1):
        tracker.add(value)
        if tracker.fired:
            return step
    return None


def of_smollm2(file: str) -> dict[str, list[dict[str, float]]]:
    """Rows of the steps of `docs/smollm2/`, by what was changed."""
    runs: dict[str, list[dict[str, float]]] = {}
    with (ROOT / "docs" / "smollm2" / file).open(newline="") as rows:
        for row in csv.DictReader(rows):
            steps = runs.setdefault(row.pop("changed", ""), [])
            steps.append({name: float(value) for name, value in row.items() if value})
    return runs


def firings_of(steps: list[dict[str, float]]) -> dict[str, int]:
    """Step of each default rule that fires on a run whose metrics are these."""
    found = {
        name: fires_at(name, [step[rule.metric] for step in steps if rule.metric in step])
        for name, rule in default_rules().items()
        if rule is not None
    }
    return {name: step for name, step in found.items() if step is not None}


@pytest.mark.parametrize("file", ["scripted.csv", "tuned.csv", "bm25.csv", "no_cold_start.csv"])
def test_rules_are_silent_on_an_llm_that_learns(file: str) -> None:
    [steps] = of_smollm2(file).values()
    assert len(steps) == 20 and firings_of(steps) == {}


def test_rules_tell_learning_rates_that_ruin_an_llm_from_others() -> None:
    found = {changed: firings_of(steps) for changed, steps in of_smollm2("tried.csv").items()}
    assert len(found) == 12
    assert {changed: fired for changed, fired in found.items() if fired} == {
        "optimizer.lr=1e-4": {"far_from_reference": 10},
        "optimizer.lr=1e-3": {"far_from_reference": 4, "no_answers": 9, "reward_collapse": 9},
    }


def test_a_policy_that_falls_silent_is_noticed_and_one_that_learns_to_search_is_not() -> None:
    assert fires_at("answers_less", QUICKSTART) is None
    assert fires_at("answers_less", [1 - share for share in SILENT]) == 24
    assert fires_at("no_answers", [1 - share for share in SILENT]) is None, "not yet"
    dip = [0.95] * 10 + [0.5] * 4 + [0.95] * 10
    assert fires_at("answers_less", dip) is None, "it came back"
    assert fires_at("answers_less", [0.3, 0.5, 0.6, 0.8, 0.9] * 4) is None, "a base model"


@pytest.mark.parametrize(
    ("name", "values", "step"),
    [
        ("broken_tags", BROKEN_TAGS, None),
        # clean text decays into rows of broken tags
        ("broken_tags", [*BROKEN_TAGS[:10], 0.5, 1, 2, 4, 8, 16], 15),
        # a base model that forgets `</think>` in every turn learns to write it, and loses it again
        ("broken_tags", [1.0, 0.8, 0.5, 0.3, 0.2] + [0.1] * 5 + [1.0] * 10, 16),
        ("broken_tags", [1.0] * 20, None),  # and one that never learns is no worse than it was
        ("broken_tags", [0.0, 0.03] * 10, None),  # many times nothing is nothing
        ("text_repeats", [0.05] * 10 + [0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.9], 17),
        ("text_repeats", [0.0] * 10 + [0.1] * 10, None),
        # twice a share of 0.45 is never reached
        ("text_repeats", [0.45] * 10 + [0.95] * 10, None),
        ("text_mostly_repeats", [0.45] * 10 + [0.95] * 10, 16),
        ("text_mostly_repeats", [0.45] * 10 + [0.7] * 10, None),
        ("right_answers_unlikely", [0.21, 0.18, 0.16, 0.13, 0.12] + [0.9] * 10, 12),
        ("right_answers_unlikely", [1.4, 1.2, 0.9, 0.8, 0.6, 0.5, 0.45, 0.4, 0.45, 0.5] * 2, None),
    ],
)
def test_text_and_likelihoods_are_compared_with_the_best_steps_of_the_run(
    name: str, values: list[float], step: int | None
) -> None:
    assert fires_at(name, values) == step


def by_chance(share: float) -> list[float]:
    """The share of 64 episodes in which something happens, for 100 steps."""
    draws = random.Random(0)
    return [sum(draws.random() < share for _ in range(64)) / 64 for _ in range(100)]


@pytest.mark.parametrize("share", [0.005, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("name", ["reward_collapse", "no_answers", "answers_less"])
def test_a_policy_that_can_hardly_do_a_thing_does_not_collapse_by_chance(
    name: str, share: float
) -> None:
    assert fires_at(name, by_chance(share)) is None


@pytest.mark.parametrize(
    ("name", "values", "step"),
    [
        ("reward_collapse", [0.4] * 10 + [0.02] * 10, 16),
        ("no_answers", [0.95] * 10 + [0.1] * 10, 17),
        ("gradient_norm", [0.0] * 8 + [0.9] * 10, None),  # nothing is right before step 9
        ("gradient_norm", [0.9] * 10 + [40.0] * 10, 15),
        ("entropy_grown", [0.03] * 6 + [0.3] * 10, None),  # a long cold start
        ("entropy_grown", [0.6] * 10 + [5.0] * 10, 16),
    ],
)
def test_a_base_near_zero_is_no_measure(name: str, values: list[float], step: int | None) -> None:
    assert fires_at(name, values) == step


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_reward_that_pays_for_silence_makes_a_run_that_is_warned_about(tmp_path: Path) -> None:
    """By empty answers, which end an episode as an answer does."""
    folder = tmp_path / "run"
    run = [f"hydra.run.dir={folder}", "experiment=quickstart", "threads=1", "test=false"]
    train_by_command(folder, *run, *PAYS)
    rows = read_metrics(folder)
    assert float(rows[0]["rollout/answered"]) > 0.95
    assert float(rows[-1]["rollout/answered"]) < 0.7 and float(rows[-1]["stop/answer"]) > 0.9
    assert "health rule answers_less: rollout/answered is 0." in (folder / "train.log").read_text()
