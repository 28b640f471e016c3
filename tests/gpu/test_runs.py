"""Whole runs by the command line: train, evaluate, save, resume. On CPUs the same, smaller.

The runs that are asked for start together, as many at a time as the machine has cores for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.devices import everywhere, trainer_of
from tests.helpers.runs import read_metrics, train_by_command
from tests.helpers.tuning import write_rows

pytestmark = pytest.mark.timeout(900)

CORES_PER_RUN = 4
BF16_GAP = 0.02  # mean difference of the log-probs of the sampler and of training, nats
QUICKSTART = [
    "policy_steps=2",
    "questions_per_step=4",
    "data.validation_limit=8",
    "data.test_limit=8",
    "trainer.val_check_interval=1",
    "callbacks.checkpoint.every_n_steps=1",
]
TUNING = [
    "experiment=simulator_sft_tiny",
    "steps=2",
    "data.files.validation=null",
    "data.files.validation_share=0.2",
    "data.examples_per_step=8",
    "data.validation_limit=8",
    "module.fidelity_examples=4",
    "trainer.val_check_interval=1",
    "callbacks.checkpoint.every_n_steps=1",
]


@dataclass(kw_only=True, slots=True, frozen=True)
class Run:
    """What distinguishes one run from the quickstart."""

    trainer: str
    overrides: list[str] = field(default_factory=list)
    tunes: bool = False  # a simulator
    kept_on: str | None = None  # where the weights are, if not where the run computes


RUNS = {  # the most important first
    "gpu": Run(trainer="gpu"),
    "fsdp": Run(trainer="fsdp"),
    "tuning": Run(trainer="fsdp", overrides=TUNING, tunes=True),
    "ppo": Run(trainer="fsdp", overrides=["algorithm=ppo"]),
    "adapters": Run(trainer="fsdp", overrides=["model/lora=default"]),
    "lag": Run(trainer="gpu", overrides=["generator=transformers_copy", "rollout.lag=1"]),
    "offload": Run(trainer="fsdp", overrides=["trainer.strategy.cpu_offload=true"], kept_on="cpu"),
}


def run_and_resume(name: str, device: str, folder: Path) -> Path:
    """Train for two steps, then go on to a third one; returns the folder of the run."""
    run, out = RUNS[name], folder / name
    given = [] if run.tunes else QUICKSTART
    if run.tunes:
        rows = write_rows(folder / f"{name}.jsonl")
        given = [f"data.files.train={rows}", f"export_dir={folder / 'simulator'}"]
    watch = "+callbacks.devices._target_=tests.helpers.device_watch.DeviceWatch"
    command = "tune" if run.tunes else "train"
    train_by_command(
        folder / f"{name}-started",
        *given,
        *run.overrides,
        *trainer_of(run.trainer, device),
        watch,
        f"+callbacks.devices.device={run.kept_on or device}",
        f"hydra.run.dir={out}",
        f"paths.log_dir={folder}",
        command=command,
    )
    steps = "steps" if run.tunes else "policy_steps"
    resumed = folder / f"{name}-resumed"
    train_by_command(resumed, f"resume={out}", f"{steps}=3", command=command)
    return out


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], Future[Path]]]:
    """The runs of the tests that were selected, under way."""
    folder = tmp_path_factory.mktemp("runs")
    wanted = [
        (str(item.callspec.params["name"]), str(item.callspec.params["device"]))
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.path == request.path
        and not any(mark.args == (True,) or mark.kwargs.get("condition") for mark in skips(item))
    ]
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // CORES_PER_RUN)) as pool:
        yield {
            each: pool.submit(run_and_resume, *each, folder / each[1])
            for each in dict.fromkeys(wanted)
        }
        pool.shutdown(cancel_futures=True)


def skips(item: pytest.Item) -> Iterator[pytest.Mark]:
    return item.iter_markers("skipif")


@pytest.mark.parametrize("device", everywhere())
@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_evaluates_saves_and_goes_on(
    name: str, device: str, runs: dict[tuple[str, str], Future[Path]]
) -> None:
    out = runs[name, device].result()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "completed"
    rows = read_metrics(out)
    assert len(rows) == 3, "two steps, and one after the resume"
    numbers = {key: float(value) for row in rows for key, value in row.items() if value}
    assert not [key for key, value in numbers.items() if not math.isfinite(value)]
    assert any(key.startswith("val/") for key in numbers)
    assert (out / "checkpoints" / "last.ckpt").exists()
    if device == "cuda":
        assert numbers["memory/peak_gib"] > 0
    if RUNS[name].tunes:
        return
    assert "test/f1" in summary
    for row in rows[:1] if name == "lag" else rows:
        assert abs(float(row["rollout/logprob_gap"])) < (BF16_GAP if device == "cuda" else 1e-4)
