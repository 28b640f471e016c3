"""Run folders: checkpoints, the latest run, the summary."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.helpers.runs import saved_run
from zerosearch.core import runs
from zerosearch.core.errors import FileError, InputError
from zerosearch.core.runs import (
    Summary,
    find_checkpoint,
    git_commit,
    is_checkpoint,
    link_latest,
    read_summary,
    run_job,
)

# -- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The folder of a run that starts."""
    folder = tmp_path / "new"
    folder.mkdir()
    return folder


def test_the_last_checkpoint_of_a_run_is_found(tmp_path: Path, new: Path) -> None:
    run = saved_run(tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    assert find_checkpoint(None, new) is None
    assert find_checkpoint(str(run), new) == last
    other = run / "checkpoints" / "step_000004.ckpt"
    other.touch()
    assert find_checkpoint(str(other), new) == other


def test_a_sharded_checkpoint_is_a_folder(tmp_path: Path, new: Path) -> None:
    run = saved_run(tmp_path / "run", "seed=3")
    last = run / "checkpoints" / "last.ckpt"
    last.unlink()
    (run / "checkpoints" / "step_000004.ckpt").mkdir()
    (run / "checkpoints" / "step_000004.ckpt" / "meta.pt").touch()
    last.symlink_to("step_000004.ckpt")
    assert find_checkpoint(str(run), new) == last
    assert find_checkpoint(str(last), new) == last
    assert find_checkpoint(None, run) == last
    assert is_checkpoint(last)


def test_a_run_that_is_started_again_in_its_folder_goes_on_there(tmp_path: Path) -> None:
    run, other = saved_run(tmp_path / "run"), saved_run(tmp_path / "other")
    last = run / "checkpoints" / "last.ckpt"
    assert find_checkpoint(None, run) == last
    assert find_checkpoint(str(other), run) == last, "what it was started from at first"


def test_a_run_without_checkpoints_cannot_be_resumed(tmp_path: Path, new: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint .*last\.ckpt; start without resume="):
        find_checkpoint(str(tmp_path), new)
    with pytest.raises(ValueError, match=r"no checkpoint .*gone\.ckpt"):
        find_checkpoint(str(tmp_path / "gone.ckpt"), new)


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning_in_its_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_checkpoint(f"{tmp_path}/.", tmp_path) is None
    assert "has no checkpoint yet: this run starts from the beginning" in caplog.text


def test_latest_that_is_a_real_folder_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "latest").mkdir()
    link_latest(tmp_path / "run", tmp_path)
    assert (tmp_path / "latest").is_dir() and "is a folder" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


# -- errors ---------------------------------------------------------------------------------------


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "passed_on"), [("SIGUSR2", [signal.SIGUSR2]), ("SIGTERM", []), ("SIGINT", [])]
)
def test_what_launched_the_run_gets_its_requeue_signal_when_all_is_saved(
    name: str, passed_on: list[int], tmp_path: Path
) -> None:
    received: list[int] = []

    def stopped(cfg: object, summary: Summary) -> None:
        summary.facts["status"] = f"interrupted by {name}"

    def requeue(number: int, frame: object) -> None:
        assert (tmp_path / "run" / "summary.json").is_file()
        received.append(number)

    (tmp_path / "run").mkdir()
    paths = {"output_dir": str(tmp_path / "run"), "log_dir": str(tmp_path)}
    cfg = OmegaConf.create({"paths": paths, "task_name": "train", "seed": 0, "tags": []})
    number = signal.Signals[name]
    earlier = signal.signal(number, requeue)
    try:
        with pytest.raises(SystemExit) as ended:
            run_job(cfg, stopped)
    finally:
        signal.signal(number, earlier)
    assert received == passed_on and ended.value.code == 128 + number


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ("checkpoints/last.ckpt", "go on with resume={folder}"),
        ("journal/policy.jsonl", "go on with resume={folder}"),  # of an evaluation
        ("metrics.csv", "nothing was saved yet, so start again"),
    ],
)
def test_ctrl_c_says_how_to_go_on_where_that_is_possible(
    saved: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped(cfg: object, summary: Summary) -> None:
        (tmp_path / saved).parent.mkdir(exist_ok=True)
        (tmp_path / saved).touch()
        raise KeyboardInterrupt

    paths = {"output_dir": str(tmp_path), "log_dir": str(tmp_path / "logs")}
    cfg = OmegaConf.create({"paths": paths, "task_name": "train", "seed": 0, "tags": []})
    with pytest.raises(SystemExit) as ended:
        run_job(cfg, stopped)
    assert ended.value.code == 130
    assert f"interrupted: {said.format(folder=tmp_path)}" in caplog.text
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "interrupted by SIGINT"
    assert not (tmp_path / "logs").exists(), "the run never began"


# -- latest ---------------------------------------------------------------------------------------


def test_latest_points_to_the_newest_run_and_survives_a_move(tmp_path: Path) -> None:
    task = tmp_path / "logs" / "train"
    for name in ("one", "two"):
        (task / "runs" / name).mkdir(parents=True)
        link_latest(task / "runs" / name, task)
        assert (task / "latest").resolve() == task / "runs" / name
    assert sorted(path.name for path in task.iterdir()) == ["latest", "runs"]
    (tmp_path / "logs").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "train"
    assert (moved / "latest").resolve() == moved / "runs" / "two"


def test_latest_of_a_task_that_is_new(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link_latest(tmp_path / "elsewhere", tmp_path / "logs" / "new")
    assert (tmp_path / "logs" / "new" / "latest").resolve() == tmp_path / "elsewhere"


# -- summary --------------------------------------------------------------------------------------


def test_a_summary_says_how_the_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "orig_argv", ["/bin/python", "-m", "zerosearch", "train", "tags=[a b]"]
    )
    summary = Summary(tmp_path, seed=0, tags=["a"])
    summary.write()
    first = json.loads((tmp_path / "summary.json").read_text())
    assert (first["status"], first["process"]) == ("running", os.getpid())
    assert first["host"] == socket.gethostname()
    assert (first["seed"], first["tags"]) == (0, ["a"])
    assert first["seconds"] >= 0
    assert first["command"].endswith(" -m zerosearch train 'tags=[a b]'")

    summary.facts |= {"status": "completed", "test/f1": 0.5, "path": tmp_path}
    summary.write()
    second = json.loads((tmp_path / "summary.json").read_text())
    assert (second["status"], second["test/f1"]) == ("completed", 0.5)
    assert second["path"] == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_the_commit_is_that_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "CHECKOUT", tmp_path)
    assert git_commit() is None, "not a checkout"
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.test"]
    for command in (
        ["init", "-q"],
        [*identity, "commit", "-q", "--allow-empty", "-m", "one"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    commit = git_commit()
    assert commit is not None and len(commit) == 40
    (tmp_path / "new").touch()
    assert git_commit() == f"{commit}+changes"


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, zerosearch.core.runs as _; "
    code += "print([m for m in ('torch', 'hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_disk_that_is_full_at_the_summary_is_one_sentence(
    status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work(cfg: DictConfig, summary: Summary) -> None:
        monkeypatch.setattr("zerosearch.core.files.os.fsync", full)
        if status == "failed":
            raise InputError("wrong")
        summary.facts["status"] = status

    cfg = OmegaConf.create({"paths": {"output_dir": str(tmp_path)}, "seed": 1, "tags": []})
    with pytest.raises(FileError, match=r"summary\.json could not be written \(No space left"):
        run_job(cfg, work)
    assert read_summary(tmp_path)["status"] == "running", "what was there before is whole"
    assert not [*tmp_path.glob(".summary*")]


@pytest.mark.parametrize("damaged", ["", "[]", "[" * 5_000])
def test_a_damaged_summary_says_nothing(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(damaged)
    assert read_summary(tmp_path) == {}
