"""A run stops in order when its searches have cost what they may cost, and goes on with more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.colour_server import MODEL, TOKENS, asking_run, tell_colours
from tests.helpers.openai_server import OpenAIServer
from tests.helpers.runs import computed, read_metrics, run_here
from zerosearch.callbacks.budget_stop import BudgetStop
from zerosearch.core.runs import LAST_CHECKPOINT

pytestmark = pytest.mark.usefixtures("trains_here")

USD = TOKENS * 1e-6 * 10  # of a call, at 10 dollars per million tokens
PRICED = ["simulator.usd_per_million_tokens=10", "callbacks.checkpoint.every_n_steps=100"]


def test_a_run_stops_at_its_budget_and_goes_on_with_a_higher_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with OpenAIServer(tell_colours, models=[MODEL]) as server:
        settings = asking_run(tmp_path, server.url, *PRICED)
        whole = run_here(tmp_path / "whole", *settings)
        calls = len(server.received)
        assert whole["status"] == "completed"
        assert whole["cost/usd"] == pytest.approx(calls * USD), "check and evaluations, too"
        rows = read_metrics(tmp_path / "whole")
        budget = float(rows[2]["cost/usd"])  # used up by the third of six steps

        caplog.clear()
        stopped = run_here(tmp_path / "run", *settings, f"simulator.budget_usd={budget}")
        assert stopped["status"].startswith(f"stopped: simulator.budget_usd={budget:g} is used up")
        assert "test/f1" not in stopped and "start/f1" in stopped
        assert (
            "after policy step 3 of 6: go on with resume=<run folder> and a higher" in caplog.text
        )
        assert "planned for the simulator: about " in caplog.text
        assert f"simulator.budget_usd={budget:g} " in caplog.text
        first = read_metrics(tmp_path / "run")
        assert [computed(row) for row in first] == [
            {k: v for k, v in computed(row).items() if k in first[0]} for row in rows[:3]
        ]
        assert (tmp_path / "run" / LAST_CHECKPOINT).is_file()
        assert (tmp_path / "run" / "policy" / "config.json").is_file(), "what there is, is exported"

        asked = len(server.received)
        with pytest.raises(ValueError, match=r"is used up \(\$.* spent\): raise it to go on"):
            run_here(tmp_path / "run", *settings, f"simulator.budget_usd={budget}")
        assert len(server.received) == asked, "what was spent before counts"

        resumed = run_here(tmp_path / "run", *settings, f"simulator.budget_usd={10 * budget}")
        assert resumed["status"] == "completed"
        assert resumed["cost/usd"] == pytest.approx(whole["cost/usd"])
        assert resumed["test/f1"] == whole["test/f1"]
    assert [computed(row) for row in read_metrics(tmp_path / "run")] == [
        computed(row) for row in rows
    ]


def test_a_budget_that_is_never_reached_changes_nothing(tmp_path: Path) -> None:
    with OpenAIServer(tell_colours, models=[MODEL]) as server:
        settings = asking_run(tmp_path, server.url, *PRICED, "policy_steps=1", "test=false")
        found = run_here(tmp_path / "run", *settings, "simulator.budget_usd=1e6")
    assert found["status"] == "completed"


def test_a_budget_is_a_sum_of_money() -> None:
    with pytest.raises(ValueError, match=r"simulator\.budget_usd=0: give dollars, more than 0"):
        BudgetStop(0)
