"""From an agent's searches to a simulator in use: what `make simulator-quickstart` calls, small."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.recorded import calls, make_environment, run

COLLECT, JUDGE, FIDELITY, TUNE = "collect", "judge", "fidelity", "tune"
SMALL = {
    COLLECT: ["questions.limit=60", "attempts=4"],
    JUDGE: ["rows.validation_share=0.2"],
    FIDELITY: ["data.limit=4", "thresholds.failed=1"],
    TUNE: ["steps=4", "data.examples_per_step=8", "module.fidelity_examples=4", "trainer=cpu"],
}


def call(folder: Path, command: str, *overrides: str) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "zerosearch",
            command,
            *overrides,
            f"paths.log_dir='{folder / 'logs'}'",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seven processes one after the other, on a busy machine too
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_collect_judge_tune_measure_and_train(tmp_path: Path) -> None:
    (tmp_path / "environment").mkdir()
    environment = make_environment(tmp_path / "environment")
    assert run(environment, "make", "simulator-quickstart").returncode == 0
    steps = [each.arguments[2:] for each in calls(environment)]
    assert [command for command, *_ in steps] == [COLLECT, JUDGE, FIDELITY, TUNE, FIDELITY]
    for command, *overrides in steps:
        call(tmp_path, command, *overrides, *SMALL[command])

    folder = tmp_path / "logs" / "simulation" / "geography"
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert {row["quality"] for row in rows} == {"useful", "noisy"}
    summary = json.loads((folder / "tune" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["test/loss"] < 0.8 * summary["start/loss"]
    _, *tuning = steps[3]
    call(tmp_path, TUNE, *tuning, *SMALL[TUNE])  # goes on, though there is nothing left to do
    again = json.loads((folder / "tune" / "summary.json").read_text())
    assert again["test/loss"] == pytest.approx(summary["test/loss"])
    logs = tmp_path / "logs"
    report = json.loads((logs / "fidelity" / "latest" / "fidelity.json").read_text())
    assert report["useful"]["searches"] == report["noisy"]["searches"] == 4

    short = ["policy_steps=1", "questions_per_step=2", "algorithm.group_size=2", "test=false"]
    short += ["data.validation_limit=2", "trainer.val_check_interval=1", "trainer=cpu"]
    # four steps do not make a simulator
    short += ["module.max_failed_share=1", "simulator_check=off"]
    call(tmp_path, "train", "simulator=tiny_tuned", *short)
    trained = json.loads((logs / "train" / "latest" / "summary.json").read_text())
    assert trained["status"] == "completed"
