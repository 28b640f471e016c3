"""Sweeps: every job is a process of its own, with its own overrides."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.helpers import pausing_simulator as pausing
from tests.helpers.configs import ROOT
from tests.helpers.openai_server import OpenAIServer, Reply, completion, documents
from tests.helpers.run_folders import write_run
from tests.helpers.runs import differing, read_metrics, small_run
from zerosearch.command_line import sweeps
from zerosearch.command_line.optimized import JobFailed
from zerosearch.core.sweep_folder import jobs_of_sweep

SHORT = ["policy_steps=1", "test=false", "trainer.val_check_interval=1", "data.validation_limit=2"]
SIDE_BY_SIDE = ["hydra/launcher=side_by_side", "hydra.launcher.n_jobs=2"]
SIZES = ("3b", "7b", "14b")


def start_sweep(folder: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        environment.setdefault(name, "")
    own = {name: value for name, value in (os.environ | environment).items() if value}
    command = [sys.executable, "-m", "zerosearch", "train", "-m", *small_run(folder), *SHORT]
    return subprocess.Popen(
        [*command, *overrides, f"paths.log_dir='{folder / 'logs'}'"],
        cwd=ROOT,
        env=own | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=600)[0]
    finally:
        process.kill()


def start_pausing(job: Path, folder: Path, *overrides: str, steps: int) -> subprocess.Popen[str]:
    """Start a sweep in the folder of a job's folder; that job halts after so many steps."""
    job.mkdir(parents=True, exist_ok=True)
    engine = f"simulator.engine._target_={pausing.__name__}.PausingSimulator"
    place = f"hydra.sweep.dir='{job.parent}'"
    environment = {pausing.FOLDER: str(job), pausing.STEPS: str(steps)}
    return start_sweep(folder, engine, place, *overrides, **environment)


def wait_for(file: Path, sweep: subprocess.Popen[str]) -> None:
    while not file.exists():
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.05)


def jobs_of(folder: Path) -> list[Path]:
    [sweep] = (folder / "logs" / "train" / "multiruns").iterdir()
    return [job.folder for job in jobs_of_sweep(sweep)]


def summary(job: Path) -> dict[str, Any]:
    return json.loads((job / "summary.json").read_text())


@pytest.mark.slow
def test_each_simulator_of_a_sweep_is_asked_at_its_own_endpoints(tmp_path: Path) -> None:
    def answered_as(name: str) -> Any:
        def answer(_: dict[str, Any]) -> Reply:
            reply = completion(documents(2, "red or blue"))
            return Reply(body=reply.body | {"model": name})

        return answer

    models = {size: f"Qwen/Qwen2.5-{size.upper()}-Instruct" for size in SIZES}
    servers = {
        size: OpenAIServer(answered_as(models[size]), models=[models[size]]) for size in SIZES
    }
    try:
        endpoints = [
            f"endpoints.prompted_{size}=[{server.__enter__().url}]"
            for size, server in servers.items()
        ]
        choice = "simulator=" + ",".join(f"prompted_{size}" for size in SIZES)
        sweep = start_sweep(tmp_path, choice, *endpoints)
        output = finish(sweep)
    finally:
        for server in servers.values():
            server.__exit__(None, None, None)
    assert sweep.returncode == 0, output
    assert len(jobs_of(tmp_path)) == 3
    for job, size in zip(jobs_of(tmp_path), SIZES, strict=True):
        asked = {request.body["model"] for request in servers[size].received}
        assert asked == {models[size]}
        assert summary(job)["status"] == "completed"
        assert summary(job)["simulator_models"] == [models[size]]
        assert summary(job)["choices"]["simulator"] == f"prompted_{size}"


def test_failures_that_no_table_names_are_named_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", rows=[], summary={"status": "failed", "error": "bad seed"})
    write_run(tmp_path / "c", rows=[], summary={"status": "completed"})
    write_run(tmp_path / "d", rows=[], summary={"status": "running"})
    failures = [(tmp_path / "a", "job 0 (seed=x): bad seed"), (tmp_path / "b", "job 1: killed")]
    failures += [(tmp_path / "c", "job 2: no metric"), (tmp_path / "d", "job 3: killed")]
    monkeypatch.setattr(sweeps, "_failures", failures)
    monkeypatch.setattr(sweeps, "_folders", [tmp_path])
    monkeypatch.setattr(sweeps, "_listed", [])
    sweeps.report_failures(JobFailed("job 0 (seed=x): bad seed"))
    assert caplog.messages[0] == (
        "jobs that failed: 4\njob 0 (seed=x): bad seed\njob 1: killed\n"
        "job 2: no metric\njob 3: killed"
    )
    with sweeps.reported(lambda folder: None):
        pass
    caplog.clear()
    caplog.set_level("INFO")
    sweeps.report_failures(JobFailed("job 0 (seed=x): bad seed"))
    assert caplog.messages[0] == (
        "jobs that failed: 4\njob 1: killed\njob 2: no metric\njob 3: killed"
    ), "the table names a alone with this reason"


@pytest.mark.slow
def test_invariant_20_a_job_of_two_processes_that_dies_takes_nothing_along(tmp_path: Path) -> None:
    two = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
    two += ["trainer.strategy.param_dtype=float32", "generator=transformers_copy"]
    sweep = start_sweep(tmp_path, *two, "optimizer.lr=1e30,1e-4", "policy_steps=2")
    output = finish(sweep)
    assert sweep.returncode == 1, output
    failed, completed = jobs_of(tmp_path)
    assert failed.name == "optimizer.lr=1e+30"
    assert summary(failed)["status"] != "completed"
    assert summary(completed)["status"] == "completed", output
    assert len(read_metrics(completed)) == 2
    table = (failed.parent / "sweep.md").read_text()
    assert "2 jobs: 1 completed, 1 failed." in table and "2 jobs: 1 completed, 1 failed" in output
    assert summary(failed)["error"] in table and (failed.parent / "sweep.png").exists()
    assert re.search(r"^optimizer.lr=1e\+?30: failed, ", output, re.MULTILINE), output
    assert "jobs that failed: 1\n" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "launcher"),
    [(signal.SIGINT, SIDE_BY_SIDE), (signal.SIGTERM, [])],
    ids=["SIGINT, side by side", "SIGTERM"],
)
def test_a_sweep_that_is_told_to_stop_lets_its_jobs_end_in_order(
    number: signal.Signals, launcher: list[str], tmp_path: Path
) -> None:
    job = tmp_path / "sweep" / "seed=1"
    sweep = start_pausing(job, tmp_path, "seed=1,2,3", "policy_steps=3", *launcher, steps=1)
    try:
        wait_for(job / pausing.PAUSED, sweep)
        sweep.send_signal(number)
        (job / pausing.GO_ON).touch()
    finally:
        output = finish(sweep)
    assert sweep.returncode == 128 + number, output
    assert not (job.parent / "seed=3").exists(), "no further job was begun"
    assert summary(job)["status"] == f"interrupted by {number.name}"
    assert (job / "checkpoints" / "last.ckpt").exists(), "the step that ran was kept"
    assert [found.state for found in jobs_of_sweep(job.parent)][2] == "not started"
    table = (job.parent / "sweep.md").read_text()
    assert f"| seed=1 | interrupted | interrupted by {number.name} |" in table
    for found in jobs_of_sweep(job.parent):
        if found.summary:
            assert not Path(f"/proc/{found.summary['process']}").exists(), "none is left behind"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_with_a_killed_job_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Side by side one job is killed and one fails; again, one after the other, nothing is lost."""
    sweep = tmp_path / "sweep"
    words = ["seed=1,2,x", "policy_steps=4", "callbacks.checkpoint.every_n_steps=2"]
    first = start_pausing(sweep / "seed=1", tmp_path, *words, *SIDE_BY_SIDE, steps=3)
    try:
        wait_for(sweep / "seed=1" / pausing.PAUSED, first)
        os.kill(summary(sweep / "seed=1")["process"], signal.SIGKILL)
        (sweep / "seed=1" / pausing.GO_ON).touch()
    finally:
        output = finish(first)
    assert first.returncode == 1, output
    assert "jobs that failed: 2" in output and "job 0 (seed=1): killed by SIGKILL" in output
    assert "[seed=2] " in output and "Traceback" not in output
    ended = {job.differs["seed"]: (job.state, job.said) for job in jobs_of_sweep(sweep)}
    assert ended["1"] == ("interrupted", "it was killed") and ended["2"] == ("completed", None)
    assert ended["x"][0] == "failed" and str(ended["x"][1]).startswith("InputError: seed=x: give")

    done = (sweep / "seed=2" / "summary.json").read_bytes()
    again = start_pausing(sweep / "seed=1", tmp_path, *words, steps=3)
    output = finish(again)
    assert again.returncode == 1, output
    for said in (
        "jobs: 3, to do: 2",
        "seed=1: goes on from the last checkpoint (it was killed)",
        "seed=2: completed: kept",
        "seed=x: is tried again from the beginning (InputError: seed=x: give",
    ):
        assert said in output, output
    assert output.count("seed=x: failed, InputError: seed=x: give") == 1
    assert re.search(r"jobs that failed: 1\n[^\n]*the same command does only", output), output
    assert (sweep / "seed=2" / "summary.json").read_bytes() == done

    whole, cut = tmp_path / "alone" / "0", sweep / "seed=1"
    alone = start_pausing(whole, tmp_path, "seed=1", *words[1:], steps=9)
    output = finish(alone)
    assert alone.returncode == 0, output
    assert summary(cut)["status"] == "completed"
    results = ("metrics.csv", "transcripts", "policy")
    assert all((whole / name).exists() for name in results)
    assert not [name for name in differing(cut, whole) if name.startswith(results)]


@pytest.mark.slow
def test_optuna_searches_and_names_the_best_value(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    page = (ROOT / "docs" / "sweeps.md").read_text()
    [shown] = re.findall(r"zerosearch train -m (hydra/sweeper=optuna .*?)\n```", page, re.S)
    small = ["policy_steps=2", "questions_per_step=2", "algorithm.group_size=2", "trainer=cpu"]
    small += ["data.validation_limit=2", "data.test_limit=2", "trainer.val_check_interval=2"]
    words = [*shlex.split(shown.replace("\\\n", "")), "hydra.sweeper.n_trials=2", *small]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "zerosearch",
            "train",
            "-m",
            *words,
            f"paths.log_dir={tmp_path / 'logs'}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = jobs_of(tmp_path)
    rates = [OmegaConf.load(job / ".hydra" / "config.yaml").optimizer.lr for job in jobs]
    assert len({*rates}) == 2 and all(1e-5 <= rate <= 1e-3 for rate in rates)
    found = OmegaConf.load(jobs[0].parent / "optimization_results.yaml")
    assert found.best_params["optimizer.lr"] in rates
    assert found.best_value == max(summary(job)["test/f1"] for job in jobs)
