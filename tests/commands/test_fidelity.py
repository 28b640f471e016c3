"""`zerosearch fidelity`: a report in a run folder, and an exit code on demand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_command_reports_writes_and_is_strict_on_demand(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "zerosearch", "fidelity"),
        *("simulator=scripted_fair", "data.limit=40", "strict=true"),
        f"paths.log_dir='{tmp_path}'",
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1, run.stderr
    assert "answer_in" in run.stdout and "warning" in run.stdout
    report = json.loads((tmp_path / "fidelity" / "latest" / "fidelity.json").read_text())
    assert report["useful"]["searches"] == 40 and len(report["warnings"]) == 2
    assert len((tmp_path / "fidelity" / "latest" / "searches.csv").read_text().splitlines()) == 81
