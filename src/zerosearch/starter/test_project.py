"""Two steps of the experiment with this folder's engine and reward: `python -m pytest`."""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SMALL = ["policy_steps=2", "questions_per_step=4", "test=false", "trainer.val_check_interval=2"]


def test_two_steps(tmp_path: Path) -> None:
    """The run completes, with the choices of `configs/`."""
    words = ["experiment=mine", *SMALL, "data.validation_limit=4", f"paths.log_dir='{tmp_path}'"]
    done = subprocess.run(
        [sys.executable, "-m", "zerosearch", "train", *words],
        cwd=HERE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "train" / "latest"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed"
    choices = summary["choices"]
    assert (choices["search"], choices["rubric"]) == ("shared_words", "short_f1")
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + 2
