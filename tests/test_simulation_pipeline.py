"""From an agent's searches to a simulator in use, each step by its command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.configs import ROOT


def run(module: str, *overrides: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seven processes one after the other, on a busy machine too
def test_collect_judge_tune_measure_and_train(tmp_path: Path) -> None:
    logs = f"paths.log_dir={tmp_path}"
    folder = tmp_path / "simulation" / "geography"
    run("zerosearch.simulator.collect", logs, "questions.limit=60", "attempts=4")
    judging = ["judge.follow_ups=true", "only_correct=true", "rows.top_k=[1]"]
    run("zerosearch.simulator.judge", logs, *judging, "rows.validation_share=0.2")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert {row["quality"] for row in rows} == {"useful", "noisy"}
    tuning = [
        "experiment=simulator_sft_tiny",
        "steps=4",
        "data.examples_per_step=8",
        "module.fidelity_examples=4",
        "trainer=cpu",
        f"hydra.run.dir={folder}/tune",
    ]
    run("zerosearch.train", logs, *tuning)
    summary = json.loads((folder / "tune" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["test/loss"] < 0.8 * summary["start/loss"]
    run("zerosearch.train", logs, *tuning)  # goes on, though there is nothing left to do
    again = json.loads((folder / "tune" / "summary.json").read_text())
    assert again["test/loss"] == pytest.approx(summary["test/loss"])

    measuring = ["data.split=test", "data.limit=4", "top_k=1"]
    measuring += ["thresholds.failed=1"]
    run("zerosearch.simulator.fidelity", logs, *measuring, "simulator=tiny_tuned")
    report = json.loads((tmp_path / "fidelity" / "latest" / "fidelity.json").read_text())
    assert report["useful"]["searches"] == report["noisy"]["searches"] == 4

    short = ["policy_steps=1", "questions_per_step=2", "algorithm.group_size=2", "test=false"]
    short += ["data.validation_limit=2", "trainer.val_check_interval=1", "trainer=cpu"]
    # four steps do not make a simulator
    short += ["module.max_failed_share=1", "simulator_check=off"]
    run("zerosearch.train", logs, "simulator=tiny_tuned", *short)
    trained = json.loads((tmp_path / "train" / "latest" / "summary.json").read_text())
    assert trained["status"] == "completed"
