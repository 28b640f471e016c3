from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.run_folders import write_run
from zerosearch.core.errors import InputError
from zerosearch.report import run_folder
from zerosearch.report.charts import charts_of
from zerosearch.report.facts import comparison, duration, engine_scores, facts
from zerosearch.report.run_folder import find_runs

LOG = """\
[2026-01-01 10:00:00,000][zerosearch.data.datamodule][INFO] - training questions: 5
[2026-01-01 10:01:00,500][zerosearch.training.module][INFO] - policy step 1 of 2
    [2026-01-01 23:59:59,000] a message that goes on
[2026-01-02 09:00:00,000][zerosearch.core.runs][INFO] - Continuing from checkpoints/last.ckpt
[2026-01-02 09:00:30,000][zerosearch.core.runs][INFO] - completed
"""


def scored(f1: float) -> dict[str, float]:
    bounds = {"test/bm25/f1_low": f1 - 0.1, "test/bm25/f1_high": f1 + 0.1}
    return {"start/bm25/f1": 0.1, "test/bm25/f1": f1, "test/bm25/count": 8, **bounds}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two strengths x two seeds, as jobs of a sweep; the last one failed."""
    for job, (strength, seed, f1) in enumerate(((0, 0, 0.4), (0, 1, 0.6), (1, 0, 0.9))):
        overrides = ["threads=1", "policy_steps=2", f"noise={strength}", f"seed={seed}"]
        rows = [{"reward/total": f1 / 2, "cost/usd": 0.0}, {"reward/total": f1, "cost/usd": 0.0}]
        folder = tmp_path / str(job)
        write_run(folder, rows=rows, summary=scored(f1), overrides=overrides)
    failed = {"status": "failed", "error": "the disk is full"}
    write_run(tmp_path / "10", summary=failed, overrides=["policy_steps=2", "noise=1", "seed=1"])
    (tmp_path / "multirun.yaml").touch()
    return tmp_path


def test_a_sweep_is_its_runs_named_by_what_differs(sweep: Path) -> None:
    runs = find_runs([str(sweep)])
    names = ["noise=0 seed=0", "noise=0 seed=1", "noise=1 seed=0", "noise=1 seed=1"]
    assert [run.name for run in runs] == names
    assert [run.path.name for run in runs] == ["0", "1", "2", "10"]
    again = find_runs([str(sweep / "0"), str(sweep)])
    assert [run.path for run in again] == [run.path for run in runs]


def test_the_name_of_a_run_begins_with_its_choices(tmp_path: Path) -> None:
    for name, search in (("a", "bm25"), ("b", "simulated")):
        overrides = [f"trainer.val_check_interval={name}", f"search={search}"]
        write_run(tmp_path / name, overrides=overrides)
    runs = find_runs([str(tmp_path / "a"), str(tmp_path / "b")])
    assert runs[0].name == "search=bm25 trainer.val_check_interval=a"
    assert [*runs[0].differing] == ["search", "trainer.val_check_interval"]


def test_a_run_alone_keeps_the_name_of_its_folder(sweep: Path) -> None:
    [run] = find_runs([str(sweep / "0")])
    assert run.name == "0" and run.overrides == ["policy_steps=2", "noise=0", "seed=0"]
    assert run.column("reward/total") == [0.2, 0.4] and run.steps == [1, 2]


def test_runs_that_differ_in_nothing_are_told_apart(sweep: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name / "run", overrides=["seed=0"])
    runs = find_runs([str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")])
    assert [run.name for run in runs] == ["run (a/run)", "run (b/run)"]


def test_the_table_of_runs_has_their_failures(sweep: Path) -> None:
    runs = find_runs([str(sweep)])
    header, rows = comparison(runs)
    assert header[:4] == ["noise", "seed", "run", "status"]
    assert rows[0][5] == "0.400 [0.300, 0.500]"
    assert rows[3][3] == "failed: the disk is full"


def test_the_headline_has_its_interval(sweep: Path) -> None:
    [result] = engine_scores(find_runs([str(sweep / "2")])[0])
    assert (result.engine, result.questions) == ("bm25", 8)
    assert (str(result.before), str(result.after)) == ("0.100", "0.900 [0.800, 1.000]")


def test_the_time_is_that_of_all_continuations_without_the_pause(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", summary={"seconds": 40.0})
    (folder / "train.log").write_text(LOG)
    [run] = find_runs([str(folder)])
    assert run.seconds == 60 + 40
    assert dict(facts(run))["time of all continuations"] == "1 min 40 s"


def test_durations_in_words() -> None:
    assert [duration(s) for s in (8.4, 125, 3780, None)] == [
        "8 s",
        "2 min 05 s",
        "1 h 03 min",
        None,
    ]


def test_charts_have_the_metrics_that_there_are(sweep: Path) -> None:
    charts, zero = charts_of(find_runs([str(sweep / "0")]))
    assert [chart["title"] for chart in charts] == ["Reward and noise", "F1 on held-out questions"]
    assert charts[0]["series"][0]["x"] == [1, 2] and charts[0]["series"][0]["y"] == [0.2, 0.4]
    assert charts[1]["series"][0]["x"] == [0, 2] and charts[1]["series"][0]["high"][1] == 0.5
    assert zero == ["cost/usd"]


@pytest.mark.parametrize(
    ("loss", "title"), [("loss/reply", "Loss of replies"), ("loss/turns", "Loss of turns")]
)
def test_a_tuning_has_its_loss_once(loss: str, title: str, tmp_path: Path) -> None:
    rows = [{loss: 2.0, "val/loss": 2.5}, {loss: 1.0, "val/loss": 1.5}]
    charts, _ = charts_of(find_runs([str(write_run(tmp_path / "run", rows=rows, summary={}))]))
    assert [chart["title"] for chart in charts] == [title]
    drawn = {each["label"]: each["y"] for each in charts[0]["series"]}
    assert drawn == {"training": [2.0, 1.0], "validation": [2.5, 1.5]}


def test_of_several_runs_the_main_metric_and_the_headline_are_drawn(tmp_path: Path) -> None:
    rows = [{"rollout/searches": 1.0, "rollout/turns": 2.0}]
    summary = {"test/bm25/f1": 0.5, "test/scripted/f1": 0.4}
    folders = [str(write_run(tmp_path / name, rows=rows, summary=summary)) for name in "ab"]
    charts, _ = charts_of(find_runs(folders))
    labels = [[(each["run"], each["label"]) for each in chart["series"]] for chart in charts]
    assert labels == [[(n, label) for n in (0, 1)] for label in ("searches", "bm25, test")]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is neither a run .* nor a folder of runs: give"):
        find_runs([str(tmp_path)])
    with pytest.raises(InputError, match="there is no folder"):
        find_runs([str(tmp_path / "none")])


def test_latest_is_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "PROJECT_ROOT", tmp_path)
    folder = write_run(tmp_path / "logs" / "train" / "runs" / "first")
    (folder.parent.parent / "latest").symlink_to(folder)
    assert find_runs(["latest"])[0].path == folder.resolve()
