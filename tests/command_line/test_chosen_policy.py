"""Which policy `checkpoint=` means, and what is said where there is none."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.configs import ROOT, compose_config
from zerosearch.command_line.chosen_policy import check_place, choose_policy, newest_policy
from zerosearch.core.runs import link_latest

CHAT = ["agent=chat", "agent.client.endpoints=[http://127.0.0.1:9]", "agent.client.model=m"]


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """The folder of the task `train`."""
    return tmp_path / "train"


def make_run(
    folder: Path,
    *,
    exported_s: int | None = None,
    saved_s: int | None = None,
    command: str = "train",
    tuned: str = "simulator",
    f1: float | None = None,
    **summary: object,
) -> Path:
    """A run folder whose export and whose last checkpoint were written at these seconds."""
    (folder / ".hydra").mkdir(parents=True)
    choices = {"tuned": tuned} if command == "tune" else {}
    told = {"hydra": {"job": {"config_name": command}, "runtime": {"choices": choices}}}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(told))
    if summary:
        (folder / "summary.json").write_text(json.dumps({**summary, "test/f1": f1}))
    for place, time_s in (
        ("policy/zerosearch.json", exported_s),
        ("checkpoints/last.ckpt", saved_s),
    ):
        if time_s is not None:
            (folder / place).parent.mkdir()
            (folder / place).touch()
            os.utime(folder / place, (time_s, time_s))
    return folder


def chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *overrides: str, name: str = "ask"
) -> tuple[str | None, str]:
    """What `checkpoint` becomes, and what is said of it."""
    cfg = compose_config(tmp_path, *overrides, name=name)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="zerosearch"):
        choose_policy(cfg, overrides)
    return cfg.checkpoint, caplog.text


# -- without checkpoint= --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ask", "evaluate", "serve"])
def test_the_last_completed_run_is_taken_and_named(
    name: str, train: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = make_run(train / "runs" / "a", exported_s=20, status="completed", f1=0.90625)
    make_run(train / "runs" / "b", exported_s=10, status="completed")
    make_run(train / "runs" / "c", saved_s=30, status="interrupted by SIGTERM")
    make_run(train / "runs" / "d", status="completed")  # left no policy
    os.utime(train / "runs" / "b")  # a folder that was touched
    found, said = chosen(tmp_path, caplog, name=name)
    assert found == str(done)
    assert "runs/a (the last completed run; F1 0.906)" in said


def test_jobs_of_a_sweep_are_runs(
    train: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(train / "runs" / "a", exported_s=10, status="completed")
    for number, job in enumerate(("0", "1")):
        make_run(train / "multiruns" / "s" / job, exported_s=20 + number, status="completed")
    assert chosen(tmp_path, caplog)[0] == str(train / "multiruns" / "s" / "1")
    assert newest_policy(train) == train / "multiruns" / "s" / "1"


def test_a_run_that_lies_elsewhere_is_found_by_the_link(train: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "elsewhere", exported_s=10, status="completed")
    link_latest(run, train)
    assert newest_policy(train, completed=True) == run


@pytest.mark.parametrize("name", ["ask", "evaluate", "serve"])
def test_without_a_completed_run_a_sentence_ends_the_command(
    name: str, train: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(train / "runs" / "a", saved_s=10, status="failed")
    with pytest.raises(ValueError, match=r"no run under .*train was completed: train one .*model="):
        chosen(tmp_path, caplog, name=name)


def test_a_model_that_is_named_is_meant_and_is_said_to_be_untrained(
    train: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(train / "runs" / "a", exported_s=10, status="completed")
    found, said = chosen(tmp_path, caplog, "model=quickstart")
    assert found is None
    assert "policy: pkg://zerosearch/policy/quickstart, as model= says: not trained here" in said
    found, said = chosen(tmp_path, caplog, "model.path=owner/name")
    assert found is None and "policy: owner/name, as model= says: not trained here" in said
    found, said = chosen(tmp_path, caplog, "model.dtype=bfloat16")
    assert found == str(train / "runs" / "a"), "how it is loaded says not which one it is"
    export = train / "runs" / "a" / "policy"
    found, said = chosen(tmp_path, caplog, f"model.path={export}")
    assert found is None and "not trained" not in said


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("ask", CHAT),
        ("evaluate", CHAT),
        ("evaluate", ["methods=[direct]"]),
    ],
)
def test_where_no_policy_of_this_process_plays_none_is_needed(
    name: str, overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert chosen(tmp_path, caplog, *overrides, name=name) == (None, "")


# -- latest ---------------------------------------------------------------------------------------


def test_latest_is_the_newest_run_or_else_the_newest_that_has_a_policy(
    train: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        make_run(train / "runs" / f"a{number}", exported_s=number, saved_s=number)
    begun = make_run(train / "runs" / "b", status="failed")
    link_latest(begun, train)
    for place in ("latest", str(train / "latest"), f"{train}/latest/"):
        found, said = chosen(tmp_path, caplog, f"checkpoint={place}")
        assert found == str(train / "runs" / "a2"), place
        assert "(the newest run that has a policy; the latest has none)" in said
    make_run(train / "runs" / "c", saved_s=3)
    link_latest(train / "runs" / "a1", train)
    assert chosen(tmp_path, caplog, "checkpoint=latest")[0] == str(train / "runs" / "a1")


def test_a_link_to_a_run_that_was_deleted_is_no_riddle(
    train: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(train / "runs" / "a", saved_s=1)
    link_latest(train / "runs" / "gone", train)
    assert chosen(tmp_path, caplog, f"checkpoint={train}/latest")[0] == str(run)


def test_latest_of_runs_that_saved_nothing_is_a_sentence(
    train: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link_latest(make_run(train / "runs" / "a"), train)
    with pytest.raises(ValueError, match=r"no run under .*train has a policy yet; train one"):
        chosen(tmp_path, caplog, "checkpoint=latest")


def test_equal_times_are_decided_by_the_name(train: Path) -> None:
    for name in ("2026-01-02", "2026-01-01"):
        make_run(train / "runs" / name, saved_s=5)
    assert newest_policy(train) == train / "runs" / "2026-01-02"


# -- places ---------------------------------------------------------------------------------------


def test_the_cold_start_of_a_policy_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = tmp_path / "tune"
    run = make_run(task / "runs" / "a", exported_s=2, saved_s=1, command="tune", tuned="policy")
    for place in (run, run / "checkpoints" / "last.ckpt"):
        check_place(str(place))
    link_latest(run, task)
    assert chosen(tmp_path, caplog, f"checkpoint={task / 'latest'}")[0] == str(run)


def test_what_a_place_lacks_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tuned", saved_s=1, command="tune")
    export = run / "simulator"
    export.mkdir()
    for name in ("prompt.j2", "zerosearch.json", "config.json"):
        (export / name).touch()
    make_run(tmp_path / "empty", status="failed", error="InputError: no model")
    (tmp_path / "sweep" / "seed=0" / ".hydra").mkdir(parents=True)
    (tmp_path / "sweep" / "multirun.yaml").touch()
    (tmp_path / "other").mkdir()
    for place, said in {
        "tuned": "it tuned a simulator",
        "tuned/checkpoints/last.ckpt": "it tuned a simulator",
        "tuned/simulator": "is a tuned simulator, no policy: simulator=",
        "empty": r"has no policy: .*last\.ckpt .*policy/.*ended with InputError: no model",
        "sweep": "is a sweep: name one of its runs, such as .*/sweep/seed=0",
        "other": r"neither a run folder nor a model \(it has no config\.json\)",
        "nowhere": "there is nothing at this path",
        "empty/checkpoints/last.ckpt": "there is nothing at this path",
    }.items():
        with pytest.raises(ValueError, match=said):
            check_place(str(tmp_path / place))


@pytest.mark.parametrize("place", ["logs/none", "./model", "last.ckpt", "no/such/place"])
def test_a_path_without_anything_is_not_looked_up_on_the_hub(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"checkpoint={place}: there is nothing at this path"):
        check_place(place)
    check_place("owner/model")
    check_place("model")


def test_finding_a_policy_loads_nothing_heavy() -> None:
    code = "import sys; import zerosearch.command_line.chosen_policy; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
