"""An algorithm, a reward and a callback of one's own, a file and a YAML each, in a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.runs import small_run

FILES = {
    "my_algorithm.py": """
from torch import Tensor, zeros_like

def best_of_group(rewards_B: Tensor, group_B: Tensor, valid_B: Tensor | None = None) -> Tensor:
    advantages_B = zeros_like(rewards_B)
    for group in group_B.unique():
        own_B = (group_B == group) & (True if valid_B is None else valid_B)
        if own_B.any():
            advantages_B[own_B] = (rewards_B[own_B] == rewards_B[own_B].max()).float() - 0.5
    return advantages_B
""",
    "configs/algorithm/best.yaml": """
defaults:
  - base
  - loss: ppo_clip
  - _self_
advantage:
  _target_: my_algorithm.best_of_group
  _partial_: true
""",
    "my_reward.py": """
def searches(trajectory):
    return float(sum(turn.action == "search" for turn in trajectory.turns))
""",
    "configs/rubric/searching.yaml": """
defaults:
  - f1
terms:
  searches:
    _target_: zerosearch.reward.rubric.RewardTerm
    weight: 0.5
    function: {_target_: my_reward.searches, _partial_: true}
""",
    "my_callback.py": """
import json
from pathlib import Path

from zerosearch.callbacks.record_callback import RecordCallback

class Advantages(RecordCallback):
    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_record(self, trainer, pl_module, record) -> None:
        if record.phase == "train":
            with self.path.open("a") as file:
                file.write(json.dumps([record.step, record.advantages, record.metrics]) + "\\n")
""",
    "configs/callbacks/advantages.yaml": """
defaults:
  - default
advantages:
  _target_: my_callback.Advantages
  path: ${paths.output_dir}/advantages.jsonl
""",
}


@pytest.mark.slow
def test_an_algorithm_a_reward_and_a_callback_of_ones_own(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.lstrip())
    choices = ["algorithm=best", "rubric=searching", "callbacks=advantages"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "zerosearch", "train", *small_run(tmp_path), *choices),
            *("policy_steps=2", "test=false", f"paths.log_dir={tmp_path / 'logs'}"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'src'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "logs" / "train" / "latest"
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    rows = [json.loads(line) for line in (run / "advantages.jsonl").read_text().splitlines()]
    assert [step for step, *_ in rows] == [0, 1]
    for _, advantages, metrics in rows:
        assert set(advantages) <= {-0.5, 0.5} and 0.5 in advantages
        assert metrics["reward/total"] > metrics["reward/f1"]
