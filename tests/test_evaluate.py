"""`python -m zerosearch.evaluate`: a table of all engines, and an error where one was lost."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.configs import ROOT, compose_config
from tests.helpers.runs import small_run
from tests.helpers.words import save_word_policy
from zerosearch.data.geography.facts import load_facts
from zerosearch.evaluate import evaluate
from zerosearch.runs import Summary
from zerosearch.search.cache import CachedSearch
from zerosearch.simulator.scripted import ScriptedSimulator
from zerosearch.training.failures import SearchOutage
from zerosearch.types import SearchRequest

TIMEOUT_S = 600
LOST = [  # beside two engines that answer
    "simulator.failure_rate=1",
    "+evaluation.train_engine._target_=zerosearch.training.evaluation.Evaluation",
    "+evaluation.train_engine.search='${search}'",
]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a small evaluation, by a policy that always searches."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    save_word_policy(tmp_path / "tiny", ask=1.0, max_position_embeddings=8192)
    return [each for each in small_run(tmp_path) if not each.startswith("callbacks.")]


@pytest.fixture
def evaluated(settings: list[str], tmp_path: Path) -> Callable[..., Summary]:
    """Runs the program in this process."""

    def run(*overrides: str) -> Summary:
        summary = Summary(tmp_path)
        try:
            evaluate(compose_config(tmp_path, *settings, *overrides, name="evaluate"), summary)
        finally:
            summary.write()
        return summary

    return run


def facts(folder: Path) -> dict[str, object]:
    return json.loads((folder / "summary.json").read_text())


def test_every_engine_gets_a_row(
    evaluated: Callable[..., Summary], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = evaluated()
    assert summary.facts["status"] == "completed"
    assert summary.facts["test/bm25/count"] == summary.facts["test/scripted/count"] == 5
    table = capsys.readouterr().out
    assert "bm25" in table and "scripted" in table and table.count("0.0%") == 2


def test_a_lost_engine_is_an_error_after_the_table(settings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "zerosearch.evaluate", *settings, *LOST),
        *(f"paths.log_dir={tmp_path}", f"hydra.run.dir={folder}"),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",  # a table that is not cut
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in shown
    [table_row] = [line for line in shown.splitlines() if "train_engine" in line and "│" in line]
    assert "100.0%" in table_row
    [error] = [line for line in shown.splitlines() if "ERROR" in line]
    for part in (
        "5 of 5 trajectories of the evaluation engine 'train_engine' (100.0%)",
        "module.max_failed_share=0.1",
        "search engine scripted simulator",
        "evaluate again",
    ):
        assert part in error
    summary = facts(folder)
    assert summary["status"] == "failed" and "train_engine" in str(summary["error"])
    assert summary["test/train_engine/failed"] == 1.0, "nothing is dropped"
    assert summary["test/train_engine/f1"] == 0.0 and summary["test/bm25/count"] == 5
    assert (folder / "transcripts" / "test" / "train_engine").is_dir()


def test_a_share_that_is_allowed_is_no_error(evaluated: Callable[..., Summary]) -> None:
    summary = evaluated(*LOST, "module.max_failed_share=1")
    assert summary.facts["status"] == "completed"
    assert summary.facts["test/train_engine/failed"] == 1.0


def test_a_replay_that_lacks_answers_says_so(
    evaluated: Callable[..., Summary], tmp_path: Path
) -> None:
    kept = CachedSearch(ScriptedSimulator(load_facts()), tmp_path / "searches", replay=False)
    asyncio.run(kept.search(SearchRequest(query="x", question="x", golden_answers=("y",))))
    replay = ["search=simulated", "simulator=llm", "simulator.model=m", "search.cache=replay"]
    replay += [f"search.cache_folder={tmp_path / 'searches'}", "evaluation=same_engine"]
    with pytest.raises(SearchOutage, match=r"'train_engine' \(100\.0%\).*search\.cache=use"):
        evaluated(*replay)
    assert facts(tmp_path)["test/train_engine/failed"] == 1.0
