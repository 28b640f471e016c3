"""What a run came to: on top of its summary, and in the words of its last lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from zerosearch.core import outcome
from zerosearch.core.outcome import arranged, headline, is_complete, next_commands
from zerosearch.core.runs import Summary, read_summary

FACTS: dict[str, Any] = {
    "process": 7,
    "reward/f1": 0.3,
    "status": "completed",
    "start/f1": 0.022,
    "test/f1": 0.906,
    "test/f1_low": 0.88,
    "test/f1_high": 0.931,
    "engine": "bm25",
    "questions": 512,
    "differs": ["seed=1"],
    "choices": {"model": "quickstart"},
    "seed": 1,
    "steps": 30,
}


def test_the_result_is_on_top() -> None:
    names = [*arranged(FACTS)]
    assert names[:4] == ["status", "start/f1", "test/f1", "test/f1_low"]
    assert names[-4:] == ["process", "reward/f1", "choices", "steps"]
    assert arranged(FACTS) == FACTS, "all of it"


def test_the_headline_is_of_a_policy_or_of_what_was_tuned() -> None:
    assert headline(FACTS) == "F1 0.022 -> 0.906 (bm25, 512 questions), 95% CI 0.880-0.931"
    assert headline({"start/loss": 2.5, "test/loss": 1.25}) == "loss 2.500 -> 1.250"
    assert headline({}) == "not evaluated"


def test_what_is_next_depends_on_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "a run"
    (run / "tensorboard").mkdir(parents=True)
    looks = ["zerosearch report 'a run'", "tensorboard --logdir 'a run'/tensorboard"]
    assert next_commands("train", run, FACTS) == [
        "zerosearch evaluate checkpoint='a run'",
        *looks,
        "zerosearch train resume='a run' policy_steps=60",
    ]
    stopped = FACTS | {"status": "interrupted by SIGTERM"}
    assert next_commands("train", run, stopped) == ["zerosearch train resume='a run'", *looks]
    (run / "simulator").mkdir()
    (run / "simulator" / "zerosearch.json").touch()
    use, *_, more = next_commands("tune", run, FACTS)
    assert use == "zerosearch train simulator='a run'/simulator" and more.endswith(" steps=60")


def test_a_checkout_without_an_active_environment_is_used_by_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome.shutil, "which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert outcome.program("train").endswith("-m zerosearch train")
    (tmp_path / "Makefile").touch()
    (tmp_path / "src").mkdir()
    assert outcome.program("train") == "make train"
    assert outcome.report_command(tmp_path / "run") == "make report run=run"


@pytest.mark.parametrize(
    ("changed", "steps", "complete"),
    [
        ({}, 30, True),
        ({}, 60, False),
        ({"differs": ["seed=1", "policy_steps=60"]}, 30, False),
        ({"choices": {"model": "hf"}}, 30, False),
    ],
)
def test_a_run_is_complete_where_nothing_else_is_asked_for(
    changed: dict[str, Any], steps: int, complete: bool
) -> None:
    assert is_complete(FACTS, FACTS | {"status": "running"} | changed, steps) is complete
    assert not is_complete(FACTS | {"status": "failed"}, FACTS, 30)
    assert not is_complete({}, {}, 0)


def test_a_summary_counts_the_seconds_of_all_processes_and_keeps_the_first_command(
    tmp_path: Path,
) -> None:
    Summary(tmp_path, command="first").write()
    ended = read_summary(tmp_path) | {"seconds_of_all": 100.0, "status": "interrupted by SIGINT"}
    (tmp_path / "summary.json").write_text(json.dumps(ended))
    second = Summary(tmp_path)
    second.write()  # as a run begins, and is then killed 50 s later
    killed = read_summary(tmp_path)
    assert killed["command"] == "first" and killed["seconds_of_all"] == pytest.approx(100.0, abs=1)
    (tmp_path / "metrics.csv").touch()
    os.utime(tmp_path / "metrics.csv", times=(killed["began"] + 50,) * 2)
    third = Summary(tmp_path)
    third.write()
    found = read_summary(tmp_path)
    assert found["seconds_of_all"] == pytest.approx(150.0, abs=1) and found["seconds"] < 1
