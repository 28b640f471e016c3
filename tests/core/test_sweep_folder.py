"""What a sweep's folder says of its jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zerosearch.core.errors import InputError
from zerosearch.core.sweep_folder import JOBS, jobs_of_sweep, plan_jobs, read_job

ENDINGS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "seed=0": ({"status": "completed"}, "completed", None),
    "seed=1": ({"status": "failed", "error": "RunError: no"}, "failed", "RunError: no"),
    "seed=2": ({"status": "interrupted by SIGTERM"}, "interrupted", "interrupted by SIGTERM"),
    "seed=3": ({"status": "running"}, "interrupted", "it was killed"),
    "seed=4": ({"status": "stopped: 5 USD"}, "completed", "stopped: 5 USD"),
    "seed=5": ({}, "not started", None),
}


def plan(folder: Path, *names: str) -> None:
    jobs = [read_job(folder / name, ["x=1", name], dict([name.split("=")])) for name in names]
    plan_jobs(folder, jobs)


def test_each_job_has_its_state_and_what_it_said(tmp_path: Path) -> None:
    plan(tmp_path, *ENDINGS)
    for name, (facts, _, _) in ENDINGS.items():
        if facts:
            (tmp_path / name).mkdir()
            (tmp_path / name / "summary.json").write_text(json.dumps(facts))
    jobs = jobs_of_sweep(tmp_path)
    assert [job.folder.name for job in jobs] == [*ENDINGS]
    assert [(job.summary, job.state, job.said) for job in jobs] == [*ENDINGS.values()]
    assert jobs[1].differs == {"seed": "1"} and jobs[1].overrides == ["x=1", "seed=1"]


def test_one_whose_folder_is_held_runs(tmp_path: Path) -> None:
    plan(tmp_path, "seed=0")
    (tmp_path / "seed=0").mkdir()
    (tmp_path / "seed=0" / "summary.json").write_text('{"status": "running"}')
    hold = "import sys, pathlib; from zerosearch.core.run_lock import locked\n"
    hold += "with locked(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", hold, str(tmp_path / "seed=0")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        assert jobs_of_sweep(tmp_path)[0].state == "running"
        holder.communicate()
    assert jobs_of_sweep(tmp_path)[0].state == "interrupted"


def test_a_sweep_that_goes_on_keeps_what_was_begun_and_forgets_what_was_not(tmp_path: Path) -> None:
    plan(tmp_path, "seed=0", "seed=1", "seed=2")
    (tmp_path / "seed=0").mkdir()
    plan(tmp_path, "seed=2", "seed=3")
    assert [job.folder.name for job in jobs_of_sweep(tmp_path)] == ["seed=0", "seed=2", "seed=3"]


def test_a_sweep_without_a_list_has_the_runs_that_there_are(tmp_path: Path) -> None:
    for number in (10, 2):
        (tmp_path / str(number) / ".hydra").mkdir(parents=True)
        saved = tmp_path / str(number) / ".hydra" / "overrides.yaml"
        saved.write_text(f"- policy_steps=1\n- seed={number}\n")
    jobs = jobs_of_sweep(tmp_path)
    assert [(job.folder.name, job.differs) for job in jobs] == [
        ("2", {"seed": "2"}),
        ("10", {"seed": "10"}),
    ]


@pytest.mark.parametrize(
    "text", ["{", '[{"folder": "../x", "overrides": [], "differs": {}}]', "[1]"]
)
def test_a_damaged_list_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / JOBS).write_text(text)
    with pytest.raises(InputError, match=r"jobs\.json is damaged .*: restore it or remove it"):
        jobs_of_sweep(tmp_path)
