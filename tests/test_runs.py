"""Run folders: resuming, the latest run, the summary."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from zerosearch import runs
from zerosearch.runs import (
    Summary,
    expand_null_groups,
    expand_resume,
    expand_simulator,
    find_checkpoint,
    git_commit,
    keep_override,
    link_latest,
    run_job,
)


def make_run(folder: Path, *overrides: str) -> Path:
    """A run folder with saved overrides and a checkpoint."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    return folder


# -- simulator= on the command line ---------------------------------------------------------------


def test_the_folder_of_a_tuned_simulator_is_a_simulator(tmp_path: Path) -> None:
    exported = tmp_path / "my export"
    exported.mkdir()
    (exported / "prompt.j2").touch()
    given = ["seed=1", f"simulator={exported}", "simulator.endpoints=[http://a:1/v1]"]
    assert expand_simulator(given) == [
        "seed=1",
        "simulator=exported",
        f"simulator.folder='{exported}'",
        "simulator.endpoints=[http://a:1/v1]",
    ]


@pytest.mark.parametrize("name", ["prompted_7b", "scripted,scripted_fair"])
def test_other_simulators_are_names(name: str) -> None:
    assert expand_simulator([f"simulator={name}"]) == [f"simulator={name}"]


def test_null_switches_off_a_group_and_stays_the_value_of_a_key() -> None:
    given = ["logger=null", "model/lora=null", "resume=null", "health.gibberish=null", "seed=1"]
    expected = ["~logger", "~model/lora", "resume=null", "health.gibberish=null", "seed=1"]
    assert expand_null_groups(given) == expected


# -- resume= on the command line ------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["seed=1"], ["resume=null"], ["resume="]])
def test_without_resume_nothing_changes(arguments: list[str]) -> None:
    assert expand_resume(list(arguments)) == arguments


def test_a_run_folder_brings_its_overrides_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "experiment=quickstart", "seed=3", "+a.b=c", "~debug")
    resume = f"resume={run}"
    assert expand_resume([resume]) == [
        "experiment=quickstart",
        "seed=3",
        "+a.b=c",
        "~debug",
        resume,
        "hydra.mode=RUN",  # it may have been a job of a sweep
        f"hydra.run.dir='{run}'",
    ]


def test_overrides_given_again_win(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "seed=3", "+a.b=c", "policy_steps=5", "resume=elsewhere")
    given = ["policy_steps=9", f"resume={run}", "++a.b=d"]
    here = ["hydra.mode=RUN", f"hydra.run.dir='{run}'"]
    assert expand_resume(given) == ["seed=3", *given, *here]


def test_the_link_to_the_latest_run_is_resumed_under_its_own_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "2026-01-01")
    link_latest(run, tmp_path)
    assert expand_resume([f"resume={tmp_path}/latest"])[-1] == f"hydra.run.dir='{run}'"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_latest_is_the_commands_newest_run_that_has_begun(command: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / command / "runs" / "2026-01-01", "seed=3")
    place = f"paths.log_dir='{tmp_path}'"
    with pytest.raises(ValueError, match=rf"resume=latest: no run of .*{command} has begun"):
        expand_resume(["resume=latest", place], command)
    link_latest(run, tmp_path / command)
    assert expand_resume(["resume=latest", place], command) == [
        "seed=3",
        place,
        f"resume='{run}'",
        "hydra.mode=RUN",
        f"hydra.run.dir='{run}'",
    ]


def test_a_run_of_another_command_is_not_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / ".hydra" / "hydra.yaml").write_text("hydra: {job: {config_name: evaluate}}")
    with pytest.raises(ValueError, match=r"run is a run of evaluate, and this is train"):
        expand_resume([f"resume={run}"])
    assert expand_resume([f"resume={run}"], "evaluate")[-1] == f"hydra.run.dir='{run}'"


def test_a_sweep_is_no_run(tmp_path: Path) -> None:
    job = make_run(tmp_path / "sweep" / "0", "seed=1")
    (tmp_path / "sweep" / "multirun.yaml").touch()
    with pytest.raises(ValueError, match=r"is a sweep: name one of its runs, such as .*sweep/0"):
        expand_resume([f"resume={tmp_path / 'sweep'}"])
    assert expand_resume([f"resume={job}"])[0] == "seed=1"


def test_what_a_setting_came_to_mean_is_kept_for_a_resumed_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my run", "seed=3", "checkpoint=latest")
    keep_override(run, "checkpoint", "/logs/a run")
    assert expand_resume([f"resume={run}"])[:2] == ["seed=3", "checkpoint='/logs/a run'"]
    keep_override(tmp_path / "new", "checkpoint", "x")  # composed by a test: nothing to keep


def test_a_run_without_overrides_can_be_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / ".hydra" / "overrides.yaml").write_text("[]\n")
    assert expand_resume([f"resume={run}"])[-1] == f"hydra.run.dir='{run}'"


def test_a_checkpoint_file_starts_a_run_of_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "seed=3")
    arguments = [f"resume={run / 'checkpoints' / 'last.ckpt'}"]
    assert expand_resume(list(arguments)) == arguments


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_nothing_to_resume(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"resume=.*{name} is neither .* nor a run folder"):
        expand_resume([f"resume={tmp_path / name}"])


def test_overrides_that_were_lost_are_not_taken_for_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / ".hydra" / "overrides.yaml").write_text("")
    with pytest.raises(ValueError, match=r"overrides\.yaml is empty; give a \.ckpt"):
        expand_resume([f"resume={run}"])


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The folder of a run that starts."""
    folder = tmp_path / "new"
    folder.mkdir()
    return folder


def test_the_last_checkpoint_of_a_run_is_found(tmp_path: Path, new: Path) -> None:
    run = make_run(tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    assert find_checkpoint(None, new) is None
    assert find_checkpoint(str(run), new) == last
    other = run / "checkpoints" / "step_000004.ckpt"
    other.touch()
    assert find_checkpoint(str(other), new) == other


def test_a_sharded_checkpoint_is_a_folder(tmp_path: Path, new: Path) -> None:
    run = make_run(tmp_path / "run", "seed=3")
    last = run / "checkpoints" / "last.ckpt"
    last.unlink()
    (run / "checkpoints" / "step_000004.ckpt").mkdir()
    (run / "checkpoints" / "step_000004.ckpt" / "meta.pt").touch()
    last.symlink_to("step_000004.ckpt")
    assert find_checkpoint(str(run), new) == last
    assert find_checkpoint(str(last), new) == last
    assert find_checkpoint(None, run) == last
    assert expand_resume([f"resume={last}"]) == [f"resume={last}"]


def test_a_run_that_is_started_again_in_its_folder_goes_on_there(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other")
    last = run / "checkpoints" / "last.ckpt"
    assert find_checkpoint(None, run) == last
    assert find_checkpoint(str(other), run) == last, "what it was started from at first"


def test_a_run_without_checkpoints_cannot_be_resumed(tmp_path: Path, new: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint .*last\.ckpt; start without resume="):
        find_checkpoint(str(tmp_path), new)
    with pytest.raises(ValueError, match=r"no checkpoint .*gone\.ckpt"):
        find_checkpoint(str(tmp_path / "gone.ckpt"), new)


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
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", "-m", "zerosearch.train", "tags=[a b]"])
    summary = Summary(tmp_path, seed=0, tags=["a"])
    summary.write()
    first = json.loads((tmp_path / "summary.json").read_text())
    assert first["status"] == "failed", "until the run says otherwise"
    assert (first["seed"], first["tags"]) == (0, ["a"])
    assert first["seconds"] >= 0
    assert first["command"].endswith(" -m zerosearch.train 'tags=[a b]'")

    summary.facts |= {"status": "completed", "test/f1": 0.5, "path": tmp_path}
    summary.write()
    second = json.loads((tmp_path / "summary.json").read_text())
    assert (second["status"], second["test/f1"]) == ("completed", 0.5)
    assert second["path"] == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_the_commit_is_that_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "PROJECT_ROOT", tmp_path)
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
    code = "import sys, zerosearch.runs; print([m for m in ('torch', 'hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
