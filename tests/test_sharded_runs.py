"""Whole runs of several ranks by the command line: end to end, and with a rank that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.configs import ROOT
from tests.helpers.devices import everywhere, trainer_of
from tests.helpers.failing import FAILURE
from tests.helpers.runs import read_metrics, small_run
from zerosearch.policy.conversion import convert

TIMEOUT_S = 600  # a guard against hanging, on a busy machine too

pytestmark = [
    pytest.mark.timeout(3 * TIMEOUT_S),
    pytest.mark.parametrize("device", everywhere(gpus=2)),  # over NCCL, and over gloo
]


@contextmanager
def started(
    folder: Path, device: str, *overrides: str, trainer: str = "fsdp"
) -> Iterator[subprocess.Popen[str]]:
    """A run on two ranks in `folder/run`, with its output in `folder/output`; gone afterwards."""
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "zerosearch",
                "train",
                *[each for each in small_run(folder) if each != "trainer=cpu"],
                *trainer_of(trainer, device, devices=2),
                f"hydra.run.dir={folder / 'run'}",
                f"paths.log_dir={folder / 'logs'}",
                *overrides,
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:  # the test has failed; the other ranks follow rank 0
            process.kill()
            process.wait()


def test_a_sharded_run_trains_exports_and_is_converted(tmp_path: Path, device: str) -> None:
    with started(tmp_path, device, "policy_steps=2") as process:
        assert process.wait(TIMEOUT_S) == 0, (tmp_path / "output").read_text()
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed" and "start/f1" in summary and "test/f1" in summary
    rows = read_metrics(run)
    assert len(rows) == 2
    largest_gap = 1e-4 if device == "cpu" else 0.02  # of bfloat16
    assert all(float(row["rollout/logprob_gap"]) < largest_gap for row in rows)
    assert (run / "checkpoints" / "last.ckpt" / "meta.pt").is_file()

    converted = convert(run / "checkpoints" / "last.ckpt", tmp_path / "converted")
    exported, again = (
        load_file(folder / "model.safetensors") for folder in (run / "policy", converted)
    )
    assert exported.keys() == again.keys()
    assert all(torch.equal(exported[name], again[name]) for name in exported)
    assert (converted / "zerosearch.json").read_text() == (
        run / "policy" / "zerosearch.json"
    ).read_text()
    before = load_file(tmp_path / "tiny" / "model.safetensors")
    assert not all(torch.equal(before[name], exported[name]) for name in exported)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run_with_the_reason(
    tmp_path: Path, victim: int, device: str
) -> None:
    with started(tmp_path, device, "policy_steps=100000", "test=false") as process:
        launcher = psutil.Process(process.pid)
        deadline = time.monotonic() + TIMEOUT_S
        while not (tmp_path / "run" / "metrics.csv").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        (other,) = (p for p in launcher.children() if "zerosearch.__main__" in p.cmdline())
        os.kill((process.pid, other.pid)[victim], signal.SIGKILL)
        code = process.wait(TIMEOUT_S)
        psutil.wait_procs([other], timeout=TIMEOUT_S)
        assert not other.is_running() or other.status() == psutil.STATUS_ZOMBIE
    output = (tmp_path / "output").read_text()
    if victim == 0:
        assert f"rank 0 (process {process.pid}) has ended" in output
        return
    assert code == 1
    assert f"rank 1 (process {other.pid}) was killed by SIGKILL" in output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed" and "was killed by SIGKILL" in summary["error"]


@pytest.mark.parametrize(("culprit", "trainer"), [(0, "fsdp"), (1, "fsdp"), (1, "ddp")])
def test_the_error_of_one_rank_is_the_last_word(
    tmp_path: Path, culprit: int, trainer: str, device: str
) -> None:
    failing = f"callbacks.fail={{_target_: tests.helpers.failing.FailOn, rank: {culprit}}}"
    given = ("policy_steps=3", "test=false", f"+{failing}")
    with started(tmp_path, device, *given, trainer=trainer) as process:
        assert process.wait(TIMEOUT_S) == 1
    output = (tmp_path / "output").read_text()
    assert "Traceback" in output and "in on_train_batch_start" in output, "that of the rank"
    last = output.strip().splitlines()[-1]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    if culprit == 1:  # rank 0, which ends last, repeats what rank 1 has said
        assert f"rank 1 failed: {FAILURE}" in last
        assert summary["error"].startswith(f"RankLost: rank 1 failed: {FAILURE}")
    else:
        assert last == f"torch.{FAILURE}", "of the traceback"
        assert summary["error"] == FAILURE
    assert "has ended" not in output
