"""Sweeps: every job is a process of its own, with its own overrides."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.helpers import pausing_simulator as pausing
from tests.helpers.configs import ROOT
from tests.helpers.openai_server import OpenAIServer, Reply, completion, documents
from tests.helpers.runs import read_metrics, small_run
from zerosearch.command_line.sweeps import _run

SHORT = ["policy_steps=1", "test=false", "trainer.val_check_interval=1", "data.validation_limit=2"]
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


def jobs_of(folder: Path) -> list[Path]:
    [sweep] = (folder / "logs" / "train" / "multiruns").iterdir()
    return sorted(path for path in sweep.iterdir() if path.is_dir())


def summary(job: Path) -> dict[str, Any]:
    return json.loads((job / "summary.json").read_text())


# A job that says when it has begun, ends in order at SIGTERM, and by itself after a while.
JOB = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
assert sys.stdin.read() == "", "nobody types into it"
pathlib.Path(sys.argv[1]).touch()
time.sleep(float(sys.argv[2]))
"""


@contextmanager
def sent_when_begun(number: signal.Signals, begun: Path) -> Iterator[None]:
    """Within, a signal comes to this process when a job has begun."""

    def send() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield
    thread.join(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_job_ends_in_order_when_its_sweep_is_told_to_stop(
    number: signal.Signals, tmp_path: Path
) -> None:
    before, begun = signal.getsignal(number), tmp_path / "begun"
    with sent_when_begun(number, begun):
        assert _run([sys.executable, "-c", JOB, str(begun), "60"]) == (7, number)
    assert signal.getsignal(number) is before


def test_what_nohup_lets_a_sweep_ignore_reaches_no_job(tmp_path: Path) -> None:
    before, begun = signal.signal(signal.SIGHUP, signal.SIG_IGN), tmp_path / "begun"
    try:
        with sent_when_begun(signal.SIGHUP, begun):
            assert _run([sys.executable, "-c", JOB, str(begun), "0.5"]) == (0, None)
    finally:
        signal.signal(signal.SIGHUP, before)


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


@pytest.mark.slow
def test_invariant_20_a_job_of_two_processes_that_dies_takes_nothing_along(tmp_path: Path) -> None:
    two = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
    two += ["trainer.strategy.param_dtype=float32", "generator=transformers_copy"]
    sweep = start_sweep(tmp_path, *two, "optimizer.lr=1e30,1e-4", "policy_steps=2")
    output = finish(sweep)
    assert sweep.returncode == 1, output
    failed, completed = jobs_of(tmp_path)
    assert summary(failed)["status"] != "completed"
    assert summary(completed)["status"] == "completed", output
    assert len(read_metrics(completed)) == 2
    assert re.search(r"jobs that failed: 1\n *job 0 \(optimizer.lr=1e\+?30\): ", output), output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_told_to_stop_lets_its_job_end_in_order(
    number: signal.Signals, tmp_path: Path
) -> None:
    job = tmp_path / "sweep" / "0"
    job.mkdir(parents=True)
    engine = f"simulator.engine._target_={pausing.__name__}.PausingSimulator"
    sweep = start_sweep(
        tmp_path,
        *("seed=1,2", engine, "policy_steps=3"),
        f"hydra.sweep.dir='{job.parent}'",
        **{pausing.FOLDER: str(job), pausing.STEPS: "1"},
    )
    try:
        while not (job / pausing.PAUSED).exists():
            assert sweep.poll() is None, sweep.communicate()[0]
            time.sleep(0.05)
        sweep.send_signal(number)
        (job / pausing.GO_ON).touch()
    finally:
        output = finish(sweep)
    assert sweep.returncode == 128 + number, output
    assert not (job.parent / "1").exists(), "no further job was begun"
    assert summary(job)["status"] == f"interrupted by {number.name}"
    assert (job / "checkpoints" / "last.ckpt").exists(), "the step that ran was kept"


@pytest.mark.slow
def test_optuna_searches_and_names_the_best_value(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    page = (ROOT / "docs" / "scale.md").read_text()
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
