"""What a run says beforehand of its calls, tokens and dollars."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.configs import compose_config
from zerosearch.simulator.cost import SimulatorPlan, make_plan

ASKED = ["experiment=zerosearch_3b", "simulator.endpoints=[http://127.0.0.1:9/v1]"]


def plan_of(tmp_path: Path, *overrides: str) -> SimulatorPlan | None:
    return make_plan(compose_config(tmp_path, *overrides))


def test_the_plan_is_the_product_of_what_is_configured(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *ASKED, "test=false", "trainer.val_check_interval=1000")
    assert plan is not None
    assert plan.episodes == 203 * 64 * 5 and plan.max_searches == 5
    assert plan.searches == round(203 * 64 * 5 * 1.5)
    assert 700 < plan.tokens_per_search < 1100, "the prompt with its demonstrations, 5 documents"
    longer = plan_of(tmp_path, *ASKED, "simulator.words_per_document=60")
    assert longer is not None
    assert longer.tokens_per_search - plan.tokens_per_search == pytest.approx(5 * 30 * 1.4, abs=2)


def test_evaluations_by_the_simulator_are_part_of_it(tmp_path: Path) -> None:
    short = ["policy_steps=20", "trainer.val_check_interval=10", "data.validation_limit=100"]
    with_them = plan_of(tmp_path, *ASKED, *short)
    others = plan_of(tmp_path, *ASKED, *short, "evaluation=geography")
    assert with_them is not None and others is not None
    assert others.episodes == 20 * 64 * 5
    assert with_them.episodes - others.episodes == (2 + 2) * 100, "and before and after training"


def test_dollars_and_the_budget_are_named(tmp_path: Path) -> None:
    price = ["simulator.usd_per_million_tokens=0.5", "simulator.budget_usd=10"]
    plan = plan_of(tmp_path, *ASKED, *price)
    assert plan is not None
    assert plan.usd == pytest.approx(plan.searches * plan.tokens_per_search * 0.5e-6)
    said = plan.sentence()
    assert f"about {plan.searches:,} calls" in said and f"${plan.usd:,.2f} at" in said
    assert f"simulator.budget_usd=10 will end it at about {10 / plan.usd:.0%} of that" in said
    free = plan_of(tmp_path, *ASKED)
    assert free is not None and "at no price" in free.sentence()


@pytest.mark.parametrize(
    "overrides",
    [[], ["experiment=r1_7b"], ["experiment=search_r1_7b"], [*ASKED, "search.cache=replay"]],
)
def test_nothing_is_planned_where_no_language_model_is_asked(
    tmp_path: Path, overrides: list[str]
) -> None:
    assert plan_of(tmp_path, *overrides) is None


def test_the_plan_is_said_before_anything_heavy_is_loaded() -> None:
    code = (
        "import sys, zerosearch.simulator.cost; assert not {'torch', 'lightning'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
