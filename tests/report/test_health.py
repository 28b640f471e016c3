from __future__ import annotations

from pathlib import Path

import yaml

from tests.helpers.configs import CONFIGS
from tests.helpers.run_folders import write_run
from zerosearch.report.health import firings, watched
from zerosearch.report.run_folder import find_runs

RULES = yaml.safe_load((CONFIGS / "health" / "default.yaml").read_text())


def test_a_collapse_is_found_where_the_monitor_saw_it(tmp_path: Path) -> None:
    """Rewards as in docs/health.md: the average of five falls below 0.3 of its best for three."""
    rewards = [0.1, 0.4, 0.5, 0.5, 0.5, 0.5, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    rows = [{"reward/total": reward, "stop/answer": 1.0} for reward in rewards]
    folder = write_run(tmp_path / "run", rows=rows, config={"health": RULES})
    [run] = find_runs([str(folder)])
    [fired] = firings(run)
    assert (fired.rule, fired.action, fired.first, fired.last) == (
        "reward_collapse",
        "stop",
        12,
        13,
    )
    assert fired.said.startswith("reward/total is 0 on average over 5 steps, below 0.3 times its")
    assert len(watched(run)) == len(RULES)


def test_a_rule_may_fire_twice_and_one_that_was_off_does_not(tmp_path: Path) -> None:
    empty = [1.0, 1.0, 0.0, 1.0]
    rule = {**RULES["empty_searches"], "average": 1, "steps": 1}
    config = {"health": {"empty_searches": rule, "gibberish": None, "odd": {"metric": 5}}}
    rows = [{"search/empty": value} for value in empty]
    [run] = find_runs([str(write_run(tmp_path / "run", rows=rows, config=config))])
    assert [(fired.first, fired.last) for fired in firings(run)] == [(1, 2), (4, 4)]
    assert list(watched(run)) == ["empty_searches"]
