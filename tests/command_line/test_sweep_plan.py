"""What a sweep does with each of its jobs, decided before the first of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from zerosearch.command_line.sweep_plan import PlannedJob, plan
from zerosearch.command_line.sweeps import JobsHere
from zerosearch.core.errors import InputError
from zerosearch.core.runs import read_summary
from zerosearch.core.sweep_folder import jobs_of_sweep

SEEDS = [["steps=5", f"seed={number}"] for number in range(3)]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = before


def settings(**values: Any) -> DictConfig:
    hydra = OmegaConf.structured(HydraConf)
    hydra.sweeper = {"_target_": "BasicSweeper", "params": None}
    hydra.overrides.task = ["steps=5", "seed=0,1,2"]
    hydra.sweep.dir = values.pop("folder", "sweep")
    of_task = {"steps": 5, "seed": 0, "paths": {"log_dir": "logs"}, "resume": None, "test": True}
    of_task |= {"optimized": {"metric": "test/f1", "direction": "maximize"}}
    of_task |= {"simulator": {"launch": True, "server": {"port": 8000}}}
    return OmegaConf.create(of_task | values | {"hydra": hydra})


def compose(config: DictConfig, overrides: list[str]) -> DictConfig:
    given = OmegaConf.from_dotlist([word for word in overrides if "/" not in word])
    return OmegaConf.merge(settings(), given)  # type: ignore[return-value]


def planned(folder: Path, jobs: list[list[str]] = SEEDS) -> list[PlannedJob]:
    return plan(settings(folder=str(folder)), compose, jobs, 0)


def ran(folder: Path, status: str, *, checkpoint: bool = False, **facts: Any) -> None:
    """What a job of these overrides leaves."""
    seed = int(folder.name.partition("=")[2])
    (folder / ".hydra").mkdir(parents=True)
    cfg = compose(settings(), SEEDS[seed])
    del cfg["hydra"]
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    (folder / "summary.json").write_text(json.dumps({"status": status, **facts}))
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").touch()


def test_jobs_lie_in_folders_of_what_differs(tmp_path: Path) -> None:
    jobs = planned(tmp_path)
    assert [job.found.folder for job in jobs] == [tmp_path / f"seed={n}" for n in range(3)]
    assert [job.cfg.seed for job in jobs] == [0, 1, 2]
    assert jobs[2].cfg.hydra.runtime.output_dir == str(tmp_path / "seed=2")
    assert [job.state for job in jobs_of_sweep(tmp_path)] == ["not started"] * 3
    [one] = planned(tmp_path, [["steps=5"]])
    assert one.found.folder == tmp_path / "0", "nothing is swept"


def test_each_job_says_what_it_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ran(tmp_path / "seed=0", "completed")
    ran(tmp_path / "seed=1", "running", checkpoint=True)
    with caplog.at_level("INFO"):
        jobs = planned(tmp_path)
    assert [job.is_done for job in jobs] == [True, False, False]
    assert caplog.messages == [
        f"sweep: {tmp_path}: jobs: 3, to do: 2",
        "  seed=0: completed: kept",
        "  seed=1: goes on from the last checkpoint (it was killed)",
        "  seed=2: starts",
    ]


def test_a_failed_job_is_tried_again(tmp_path: Path) -> None:
    ran(tmp_path / "seed=0", "failed", error="RunError: no")
    ran(tmp_path / "seed=1", "failed", error="RunError: no", checkpoint=True)
    ran(tmp_path / "seed=2", "interrupted by SIGTERM")
    assert [job.to_do() for job in planned(tmp_path)] == [
        "is tried again from the beginning (RunError: no)",
        "is tried again from the last checkpoint (RunError: no)",
        "goes on from the beginning (interrupted by SIGTERM)",
    ]


@pytest.mark.parametrize("status", ["completed", "running", "failed"])
def test_a_job_of_other_settings_is_refused_and_nothing_is_changed(
    status: str, tmp_path: Path
) -> None:
    ran(tmp_path / "seed=1", status, checkpoint=True)
    others = [[f"steps={5 + (n == 1)}", f"seed={n}"] for n in range(3)]
    said = (
        r"seed=1 has a job of other settings \(steps is 5 there and 6 here\): give another folder"
    )
    with pytest.raises(InputError, match=said):
        planned(tmp_path, others)
    assert not (tmp_path / "jobs.json").exists()
    assert read_summary(tmp_path / "seed=1")["status"] == status


def test_what_is_of_the_machine_may_differ(tmp_path: Path) -> None:
    ran(tmp_path / "seed=0", "completed")
    saved = tmp_path / "seed=0" / ".hydra" / "config.yaml"
    changed = (
        saved.read_text()
        .replace("log_dir: logs", "log_dir: x")
        .replace("resume: null", f"resume: {tmp_path / 'seed=0'}")  # by itself
    )
    assert changed != saved.read_text()
    saved.write_text(changed)
    assert planned(tmp_path)[0].is_done


def test_a_job_begun_from_another_checkpoint_is_refused(tmp_path: Path) -> None:
    ran(tmp_path / "seed=0", "completed")
    saved = tmp_path / "seed=0" / ".hydra" / "config.yaml"
    saved.write_text(saved.read_text().replace("resume: null", "resume: other.ckpt"))
    with pytest.raises(InputError, match=r"other settings \(resume is other\.ckpt there"):
        planned(tmp_path)


def test_tables_of_one_sweep_are_of_one_policy(tmp_path: Path) -> None:
    ran(tmp_path / "seed=0", "completed", checkpoint=False)
    facts = json.loads((tmp_path / "seed=0" / "summary.json").read_text())
    (tmp_path / "seed=0" / "summary.json").write_text(json.dumps(facts | {"checkpoint": "runs/a"}))

    def other(config: DictConfig, overrides: list[str]) -> DictConfig:
        return OmegaConf.merge(compose(config, overrides), {"checkpoint": "runs/b"})  # type: ignore[return-value]

    with pytest.raises(InputError, match=r"a table of runs/a, and this one would be of runs/b"):
        plan(settings(folder=str(tmp_path)), other, SEEDS, 0)


@pytest.mark.parametrize("damaged", ["", "[", "7"])
def test_saved_settings_that_are_damaged_are_not_compared(
    damaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran(tmp_path / "seed=0", "running", checkpoint=True)
    (tmp_path / "seed=0" / ".hydra" / "config.yaml").write_text(damaged)
    assert planned(tmp_path)[0].is_begun and "config.yaml is damaged" in caplog.text
    (tmp_path / "seed=0" / "summary.json").unlink()
    said = "goes on from the last checkpoint (it has no summary.json)"
    assert planned(tmp_path)[0].to_do() == said


def test_batches_that_a_failure_would_end_are_refused(tmp_path: Path) -> None:
    config = settings(folder=str(tmp_path))
    config.hydra.sweeper = {"_target_": "BasicSweeper", "params": None, "max_batch_size": 2}
    with pytest.raises(InputError, match=r"max_batch_size: a job that fails would end"):
        plan(config, compose, SEEDS, 0)


def test_a_sweep_goes_on_with_the_words_that_made_most_of_it(tmp_path: Path) -> None:
    def words() -> list[str]:
        saved = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
        return saved["hydra"]["overrides"]["task"]

    planned(tmp_path)
    for seed in range(3):
        (tmp_path / f"seed={seed}").mkdir()
    part = settings(folder=str(tmp_path))
    part.hydra.overrides.task = ["steps=5", "seed=1"]
    plan(part, compose, [["steps=5", "seed=1"]], 0)
    assert words() == ["steps=5", "seed=0,1,2"]
    more = settings(folder=str(tmp_path))
    more.hydra.overrides.task = ["steps=5", "seed=0,1,2,3"]
    plan(more, compose, [*SEEDS, ["steps=5", "seed=3"]], 0)
    assert words() == ["steps=5", "seed=0,1,2,3"]


def test_a_failed_job_that_left_nothing_takes_other_settings(tmp_path: Path) -> None:
    ran(tmp_path / "seed=0", "failed", error="InputError: steps")
    [job] = planned(tmp_path, [["steps=6", "seed=0"]])
    assert job.cfg.steps == 6


def test_what_is_swept_by_a_sweeper_of_its_own_is_told_apart(tmp_path: Path) -> None:
    jobs = planned(tmp_path, [["steps=5", "seed=0", "lr=0.1"], ["steps=5", "seed=0", "lr=0.2"]])
    assert [job.title for job in jobs] == ["seed=0, lr=0.1", "seed=0, lr=0.2"]


# -- launchers ------------------------------------------------------------------------------------


def launched(folder: Path, **settings_of_launcher: Any) -> list[JobReturn]:
    """Returns of a sweep of three seeds on this machine."""
    config = settings(folder=str(folder))
    config.hydra.hydra_logging = {"root": None}
    loader = SimpleNamespace(load_sweep_config=compose)
    launcher = JobsHere(**settings_of_launcher)
    launcher.setup(
        hydra_context=cast("HydraContext", SimpleNamespace(config_loader=loader)),
        task_function=lambda cfg: None,
        config=config,
    )
    return list(launcher.launch(SEEDS, 0))


def test_jobs_that_are_completed_give_a_search_their_value_and_start_nothing(
    tmp_path: Path,
) -> None:
    for number in range(3):
        f1: dict[str, Any] = {"test/f1": number / 10}
        ran(tmp_path / f"seed={number}", "completed", **f1)
    assert [each.return_value for each in launched(tmp_path)] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize("number", [0, -2, "two", True])
def test_a_number_of_jobs_that_cannot_be_is_refused(number: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"hydra\.launcher\.n_jobs={number}: give how many jobs"):
        launched(tmp_path, n_jobs=number)


def test_servers_of_jobs_side_by_side_need_ports_of_their_own(tmp_path: Path) -> None:
    for number in range(3):
        ran(tmp_path / f"seed={number}", "failed")
    with pytest.raises(InputError, match=r"port=8000: .* give simulator\.server\.port=null"):
        launched(tmp_path, n_jobs=2)
