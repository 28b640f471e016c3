from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.callbacks.export import PolicyExport
from zerosearch.callbacks.graceful_stop import SIGNALS, GracefulStop, stopped_by_signal
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.core.runs import REQUEUE_SIGNALS

STEPS = 6
ROOT = Path(__file__).parents[2]


def send(number: int, at: int):
    """A hook that sends this process a signal when `at` policy steps are completed."""

    def hook(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), number)

    return hook


def run(folder, *, resume: Any = False, **hooks: Any):
    """One process's part of a run that validates every three steps."""
    module, stop = PolicyStub(STEPS, **hooks), GracefulStop()
    callbacks = [
        stop,
        PolicyCheckpoint(folder / "checkpoints", 10),
        PolicyExport(folder / "policy"),
    ]
    trainer = make_trainer(STEPS, callbacks=callbacks, val_every=3)
    trainer.fit(module, ckpt_path=folder / "checkpoints" / "last.ckpt" if resume else None)
    return trainer, module, stop


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> PolicyStub:
    return run(tmp_path_factory.mktemp("whole"))[1]


def test_without_a_signal_nothing_stops(whole):
    assert (whole.policy_step, whole.validated) == (STEPS, [3, 6])


@pytest.mark.parametrize("number", SIGNALS)
def test_finishes_the_step_saves_and_resumes_exactly(tmp_path, whole, number):
    trainer, first, stop = run(tmp_path, on_step=send(number, 3))
    assert [step for step, *_ in first.trained] == [0, 1, 2, 3]
    assert first.validated == [3]  # none after step 4: the whole run has none there
    assert (stop.signal_name, stop.exit_code) == (number.name, 128 + number)
    assert stopped_by_signal(trainer) is stop
    assert trainer.limit_val_batches == 1.0  # as before
    assert not (tmp_path / "policy").exists()

    trainer, second, stop = run(tmp_path, resume=True)
    assert first.trained + second.trained == whole.trained
    assert first.validated + second.validated == whole.validated
    assert torch.equal(second.weight, whole.weight)
    assert (stop.signal_name, stop.exit_code) == (None, 0)
    assert (tmp_path / "policy" / "exported").exists()


@pytest.mark.parametrize("where", [{"on_step": 2}, {"on_validation": 3}])
def test_a_validation_that_runs_or_is_due_is_finished_first(tmp_path, whole, where):
    hooks = {name: send(signal.SIGTERM, at) for name, at in where.items()}
    _, first, stop = run(tmp_path, **hooks)
    assert stop.signal_name == "SIGTERM"
    assert (first.policy_step, first.validated) == (3, [3])

    _, second, _ = run(tmp_path, resume=True)
    assert first.trained + second.trained == whole.trained
    assert second.validated == [6]
    assert torch.equal(second.weight, whole.weight)


def test_a_signal_in_the_last_step_ends_with_everything_saved(tmp_path, whole):
    _, module, stop = run(tmp_path, on_step=send(signal.SIGINT, 5))
    assert stop.exit_code == 130
    assert module.validated == [3, 6]
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["weight"], whole.weight)


def test_earlier_handlers_are_restored(tmp_path):
    earlier = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(tmp_path / "a", on_step=send(signal.SIGINT, 1))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == earlier

    def fail(step: int) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        run(tmp_path / "b", on_step=fail)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == earlier


def test_message_says_what_happens(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="zerosearch"):
        run(tmp_path, on_step=send(signal.SIGTERM, 3))
    first, last = caplog.messages
    assert first.startswith(
        "SIGTERM received: training stops with a checkpoint when policy step 4 of 6"
    )
    assert "A second signal stops at once" in first
    assert last == (
        "Training stopped by SIGTERM after policy step 4 of 6; resume=latest goes on from there"
    )


def test_second_ctrl_c_stops_at_once(tmp_path):
    after = []

    def twice(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            after.append(step)

    with pytest.raises(SystemExit):  # Lightning's way to end a run at KeyboardInterrupt
        run(tmp_path, on_step=twice)
    assert after == []
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("warning", REQUEUE_SIGNALS)
def test_slurm_that_reminds_of_its_warning_ends_nothing_sooner(tmp_path, warning):
    def warn_and_remind(step: int) -> None:
        if step == 3:
            for number in (warning, signal.SIGTERM, warning):
                os.kill(os.getpid(), number)

    _, module, stop = run(tmp_path, on_step=warn_and_remind)
    assert module.policy_step == 4
    assert stop.signal_name in ("SIGTERM", warning.name)
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_under_slurm_lightning_neither_saves_nor_requeues_itself(tmp_path, monkeypatch):
    """Its own handler would save in the middle of a step and call scontrol."""
    job = {"JOB_ID": 1, "NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    trainer, module, stop = run(tmp_path, on_step=send(signal.SIGUSR1, 3))
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment) and environment.auto_requeue
    assert (module.policy_step, stop.exit_code) == (4, 128 + signal.SIGUSR1)
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    with pytest.raises(SystemExit) as left:  # outside of training
        signal.raise_signal(signal.SIGUSR1)
    assert left.value.code == 128 + signal.SIGUSR1


def test_a_signal_to_another_process_stops_this_one(tmp_path):
    class TwoProcesses(SingleDeviceStrategy):
        """The other process received SIGTERM in the second step."""

        def reduce(self, tensor, *args, **kwargs):
            if kwargs.get("reduce_op") != "max":
                return tensor
            return torch.maximum(tensor, torch.tensor(15 if module.policy_step >= 2 else 0))

    module, stop = PolicyStub(STEPS), GracefulStop()
    strategy = TwoProcesses(device=torch.device("cpu"))
    callbacks = [stop, PolicyCheckpoint(tmp_path, 10)]
    make_trainer(STEPS, callbacks=callbacks, val_every=None, strategy=strategy).fit(module)
    assert (module.policy_step, stop.signal_name) == (2, "SIGTERM")
    assert (tmp_path / "last.ckpt").exists()


def test_a_real_process(tmp_path):
    """SIGTERM from outside: once is a clean stop, twice is the end of the process."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/helpers/signalled_run.py"), str(tmp_path)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )

    def wait_until_in_step(name: str) -> None:
        while not (tmp_path / name / "waiting").exists():
            assert process.poll() is None
            time.sleep(0.02)

    try:
        wait_until_in_step("once")
        process.send_signal(signal.SIGTERM)
        (tmp_path / "once" / "signalled").touch()
        wait_until_in_step("twice")
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)  # signals that are pending together are one
    finally:
        process.kill()
    assert (tmp_path / "once" / "exit_code").read_text() == "143"
    assert process.returncode == -signal.SIGTERM
    saved = [torch.load(tmp_path / n / "checkpoints" / "last.ckpt") for n in ("once", "twice")]
    assert [each["policy_step"] for each in saved] == [3, 2]
