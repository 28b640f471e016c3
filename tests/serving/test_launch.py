"""Runs that are started from outside: torchrun, SLURM's batch script, sweeps on a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.helpers import pausing_simulator as pausing
from tests.helpers.configs import ROOT
from tests.helpers.openai_server import free_port
from tests.helpers.runs import read_metrics, small_run
from zerosearch.core.run_names import run_name
from zerosearch.serving.settings import LAUNCHER_VARIABLES

TIMEOUT_S = 280
TWO_RANKS = [
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "data.validation_limit=2",
]
# everything else of a run belongs to other tests
SHORT = ["test=false", "trainer.val_check_interval=3"]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    # those of runs that other tests made in this process, the port of a store among them
    for name in (*LAUNCHER_VARIABLES, "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    return os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def overrides(folder: Path) -> list[str]:
    kept = [item for item in small_run(folder) if not item.startswith("trainer")]
    return [*kept, *SHORT, f"paths.log_dir={folder / 'logs'}"]


def runs_of(folder: Path) -> list[Path]:
    return sorted((folder / "logs" / "train" / "runs").iterdir())


# -- names ----------------------------------------------------------------------------------------


def run_to_its_end(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


def slurm(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name in ("JOB_ID", "STEP_ID", "JOB_NAME"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_a_task_of_a_job_keeps_its_name_when_the_job_is_requeued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slurm(monkeypatch, JOB_ID="17", STEP_ID="2", JOB_NAME="zerosearch")
    assert run_name() == run_name() == "slurm-17-2"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"JOB_ID": "17", "JOB_NAME": "zerosearch"},  # in the batch script, without srun
        {"JOB_ID": "17", "STEP_ID": "0", "JOB_NAME": "bash"},  # srun --pty bash
    ],
    ids=["none", "batch", "interactive"],
)
def test_other_runs_are_named_after_the_time(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(monkeypatch, **variables)
    first = run_name()
    time.sleep(0.001)
    assert first != run_name() and first.startswith("20")


def test_processes_of_torchrun_agree_on_the_first_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import TCPStore

    slurm(monkeypatch)
    port = free_port()
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    names = []
    for run in ("a", "a", "b"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run)
        names.append(run_name())
        time.sleep(0.001)
    assert names[0] == names[1] != names[2]
    assert store.num_keys() >= 2


# -- whole runs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_makes_one_run_folder(environment: dict[str, str], tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "zerosearch", "train", *overrides(tmp_path), *TWO_RANKS]
    run_to_its_end([*command, "policy_steps=2", "algorithm.group_size=4"], environment)
    [run] = runs_of(tmp_path)
    assert len(read_metrics(run)) == 2
    said = (run / "train.log").read_text()
    assert said.count("completed after") == 1, "by the first process alone"
    assert (tmp_path / "logs" / "train" / "latest").resolve() == run


@pytest.mark.slow
def test_a_requeued_job_goes_on_in_its_folder(environment: dict[str, str], tmp_path: Path) -> None:
    """The batch script itself, with a stand-in for srun and one for scontrol."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stand_in = f"{sys.executable} {ROOT}/tests/helpers/srun.py"
    srun = f'#!/bin/sh\necho "$@" >> {tmp_path}/srun\nexec {stand_in} "$@"\n'
    scripts = {"srun": srun, "scontrol": f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol\n'}
    for name, text in scripts.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    run = tmp_path / "logs" / "train" / "runs" / "slurm-1234-0"
    run.mkdir(parents=True)
    job = {"JOB_ID": "1234", "JOB_NUM_NODES": "1", "NNODES": "1", "NTASKS": "2", "JOB_NAME": "x"}
    environment |= {f"SLURM_{name}": value for name, value in job.items()}
    environment |= {
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "3",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "VIRTUAL_ENV": str(Path(sys.executable).parents[1]),
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "FAKE_SRUN_PIDS": str(tmp_path / "pids"),
        pausing.FOLDER: str(run),
        pausing.STEPS: "2",
    }
    pausing_search = f"simulator.engine._target_={pausing.__name__}.PausingSimulator"
    command = ["bash", "scripts/train.sbatch", *overrides(tmp_path), *TWO_RANKS[:2], *TWO_RANKS[3:]]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, pausing_search, "policy_steps=4"], env=environment, cwd=ROOT, text=True
        )

    job_process = start()
    try:
        while not (run / pausing.PAUSED).exists():
            assert job_process.poll() is None
            time.sleep(0.05)
        for pid in (tmp_path / "pids").read_text().split():
            os.kill(int(pid), signal.SIGUSR1)
        (run / pausing.GO_ON).touch()
        assert job_process.wait(TIMEOUT_S) == 138
        assert (tmp_path / "scontrol").read_text() == "requeue 1234\n"
        assert " --cpus-per-task=3 " in (tmp_path / "srun").read_text(), "of sbatch, for each task"
        assert len(read_metrics(run)) == 3, "the step that ran was finished"

        job_process = start()
        assert job_process.wait(TIMEOUT_S) == 0
    finally:
        job_process.kill()
    assert runs_of(tmp_path) == [run]
    assert [row["step"] for row in read_metrics(run)] == ["0", "1", "2", "3"]


# -- sweeps ---------------------------------------------------------------------------------------


needs_submitit = pytest.mark.skipif(
    not find_spec("submitit"), reason="the extra slurm is not installed"
)


@needs_submitit
@pytest.mark.slow
def test_a_sweep_goes_through_submitit(environment: dict[str, str], tmp_path: Path) -> None:
    """With its local launcher, which starts jobs as the one for SLURM does."""
    command = [
        sys.executable,
        "-m",
        "zerosearch",
        "train",
        "-m",
        "hydra/launcher=submitit_local",
    ]
    words = [*command, *overrides(tmp_path), "trainer=cpu", "policy_steps=1", "seed=1,x"]

    def ended() -> str:
        done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stdout

    failure = "seed=x: failed, InputError: seed=x: give a whole number"
    said = ended()
    assert said.count(failure) == 1 and "jobs that failed: 1" in said
    [sweep] = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    assert "seed=1" in yaml.safe_load((sweep / "seed=1" / ".hydra" / "overrides.yaml").read_text())
    assert len(read_metrics(sweep / "seed=1")) == 1
    said = ended()
    assert "seed=1: completed: kept" in said and said.count(failure) == 1
    assert len(list((sweep / ".submitit").rglob("*_0_result.pkl"))) == 3, (
        "one job was not sent again"
    )


@needs_submitit
def test_the_cluster_launcher_composes() -> None:
    from hydra import compose, initialize_config_dir

    os.environ.setdefault("PROJECT_ROOT", str(ROOT))
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", overrides=["hydra/launcher=slurm"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher["_target_"].endswith("SlurmLauncher")
    assert launcher.max_num_timeout > 0 and launcher.signal_delay_s >= 600
    assert launcher.tasks_per_node == launcher.gpus_per_node == cfg.trainer.devices
