"""Resume is exact: a run that dies anywhere and is resumed equals one that was never stopped."""

from __future__ import annotations

import csv
import errno
import os
import shutil
from pathlib import Path
from traceback import StackSummary
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.summary.writer import event_file_writer
from torch.distributed.checkpoint import CheckpointException

from tests.helpers.policy_stub import UPDATES_PER_STEP, PolicyStub, make_trainer
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.callbacks.export import PolicyExport
from zerosearch.callbacks.metrics_csv import MetricsCsv
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint, save_whole
from zerosearch.training.failures import SearchOutage
from zerosearch.training.sharded_strategy import FullyShardedStrategy

STEPS = 6


class Killed(BaseException):
    """Stands for a process that dies: nothing of the run is saved after it."""


class Defect(Exception):
    """Stands for an error that nobody has foreseen."""


class DieAfterLastStep(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        raise Killed


def fit(
    folder,
    *,
    die_in_step=None,
    die_in_validation=None,
    resume=False,
    every=2,
    val_every=3,
    validates=True,
    logger=False,
):
    """One process of a run in `folder`, which may go on with another one; returns its module."""

    def die(where):
        def check(step: int) -> None:
            if step == where:
                raise Killed

        return check

    def step(number: int) -> None:
        for each in module.loggers:
            each.log_metrics({"loss": 1.0}, number)
        die(die_in_step)(number)

    module = PolicyStub(STEPS, step, die(die_in_validation))
    callbacks = [
        PolicyCheckpoint(folder / "checkpoints", every, keep=2),  # Lightning moves it to the end
        MetricsCsv(folder),
        PolicyExport(folder / "policy"),
    ]
    trainer = make_trainer(
        STEPS,
        callbacks=callbacks,
        val_every=val_every,
        plugins=[AtomicCheckpointIO()],
        logger=[TensorBoardLogger(folder / "tensorboard", "", "")] if logger else False,
    )
    if not validates:
        module.val_dataloader = lambda: []
    path = (resume if isinstance(resume, Path) else folder) / "checkpoints" / "last.ckpt"
    try:
        trainer.fit(module, ckpt_path=path if resume and path.exists() else None)
    except Killed:
        assert not resume
    return module


def metrics_without_times(folder) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder and module of a run without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder)


def logged_steps(folder) -> list[int]:
    """Steps of the loss in event files, in the order in which they stand there."""
    events = [
        event
        for path in sorted(folder.glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(path)).Load()
    ]
    return [e.step for e in events if [v.tag for v in e.summary.value] == ["loss"]]


def names(folder) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_defect_15_counts_policy_steps_and_saves_the_last(tmp_path):
    fit(tmp_path, every=4)
    assert names(tmp_path) == ["last.ckpt", "step_000004.ckpt", "step_000006.ckpt"]
    saved = torch.load(tmp_path / "checkpoints" / "step_000004.ckpt", weights_only=True)
    assert saved["policy_step"] == 4
    assert saved["global_step"] == 4 * UPDATES_PER_STEP


@pytest.mark.parametrize(
    ("die", "every", "val_every"),
    [
        *(({"die_in_step": step}, 2, 3) for step in range(STEPS)),
        ({"die_in_validation": 3}, 1, 3),  # step 3 is saved after its validation, so not at all
        ({"die_in_validation": 6}, 2, 3),
        ({"die_in_step": 3}, 1, 3),  # saved right after a validation
        ({"die_in_step": 5}, 1, 1),
        ({"die_in_step": 4}, 3, None),
    ],
)
def test_invariant_13_defect_15_killed_and_resumed_equals_uninterrupted(
    whole, tmp_path, die, every, val_every
):
    if val_every == 3:
        whole_folder, reference = whole
    else:
        whole_folder = tmp_path / "whole"
        reference = fit(whole_folder, val_every=val_every)
    folder = tmp_path / "run"
    first = fit(folder, **die, every=every, val_every=val_every)
    second = fit(folder, resume=True, every=every, val_every=val_every)

    start = second.trained[0][0]
    assert first.trained[:start] + second.trained == reference.trained
    validated = [step for step in first.validated if step <= start] + second.validated
    assert validated == reference.validated
    assert torch.equal(second.weight, reference.weight)
    assert metrics_without_times(folder) == metrics_without_times(whole_folder)
    assert (folder / "policy" / "exported").read_text() == str(STEPS)


@pytest.mark.parametrize(("kind", "after_updates"), [(Defect, 0), (Defect, 1), (SearchOutage, 0)])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_an_error_leaves_a_checkpoint_of_the_last_whole_step(
    step: int, kind: Any, after_updates: int, tmp_path: Path, whole: tuple[Path, PolicyStub]
) -> None:
    def fail(number: int) -> None:
        if number == step:
            for _ in range(after_updates):
                module.optimizers().step()  # type: ignore[union-attr]
            raise kind

    module = PolicyStub(STEPS, fail)
    callbacks = [PolicyCheckpoint(tmp_path / "checkpoints", 100), MetricsCsv(tmp_path)]
    with pytest.raises(kind):
        make_trainer(STEPS, callbacks=callbacks, plugins=[AtomicCheckpointIO()]).fit(module)
    saved = [] if after_updates else ["last.ckpt", f"step_{step:06d}.ckpt"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*")) == saved
    resumed = fit(tmp_path, resume=True)
    assert [each for each, _, _ in resumed.trained] == [*range(0 if after_updates else step, STEPS)]
    assert torch.equal(resumed.weight, whole[1].weight)
    assert metrics_without_times(tmp_path) == metrics_without_times(whole[0])


def test_what_ends_a_run_is_shown_where_nothing_can_be_saved(tmp_path, monkeypatch, caplog):
    def fail(number: int) -> None:
        if number == 3:
            monkeypatch.setattr(torch, "save", full)
            raise Defect

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    callbacks = [PolicyCheckpoint(tmp_path / "checkpoints", 100)]
    trainer = make_trainer(STEPS, callbacks=callbacks, plugins=[AtomicCheckpointIO()])
    with pytest.raises(Defect):
        trainer.fit(PolicyStub(STEPS, fail))
    assert "Nothing could be saved" in caplog.text and "No space left" in caplog.text


@pytest.mark.parametrize("val_every", [3, None])
def test_defect_15_death_after_the_last_step_still_exports(tmp_path, val_every):
    module = PolicyStub(STEPS)
    checkpoint = PolicyCheckpoint(tmp_path / "checkpoints", 2)
    callbacks = [MetricsCsv(tmp_path), DieAfterLastStep(), checkpoint]
    with pytest.raises(Killed):
        make_trainer(STEPS, callbacks=callbacks, val_every=val_every).fit(module)
    resumed = fit(tmp_path, resume=True, val_every=val_every)
    assert (resumed.trained, resumed.validated) == ([], [])
    assert (tmp_path / "policy" / "exported").read_text() == str(STEPS)
    assert len(metrics_without_times(tmp_path)) == STEPS


@pytest.mark.parametrize("val_every", [1, 2, 3])
def test_without_validation_questions_every_checkpoint_is_saved(tmp_path, val_every):
    fit(tmp_path, die_in_step=5, validates=False, val_every=val_every)
    assert names(tmp_path) == ["last.ckpt", "step_000002.ckpt", "step_000004.ckpt"]
    resumed = fit(tmp_path, resume=True, validates=False, val_every=val_every)
    assert [step for step, _, _ in resumed.trained] == [4, 5]
    assert "step_000006.ckpt" in names(tmp_path)


@pytest.mark.parametrize("die", [{"die_in_step": 5}, {"die_in_validation": 6}, {"die_in_step": 3}])
def test_tensorboard_holds_each_step_once_and_in_order_after_a_kill(tmp_path, die, monkeypatch):
    # names of two files of one second and one process differ in a number, and 10 is read before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))
    fit(tmp_path, **die, logger=True)
    fit(tmp_path, resume=True, logger=True)
    assert logged_steps(tmp_path / "tensorboard") == [*range(STEPS)]


def test_a_finished_run_resumed_trains_nothing(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    again = fit(tmp_path / "run", resume=True)
    assert (again.trained, again.validated) == ([], [])
    assert torch.equal(again.weight, whole[1].weight)


def test_a_run_resumed_elsewhere_has_the_whole_table(whole, tmp_path):
    fit(tmp_path / "old", die_in_step=4)
    fit(tmp_path / "new", resume=tmp_path / "old")
    assert metrics_without_times(tmp_path / "new") == metrics_without_times(whole[0])


def test_keeps_the_newest(tmp_path):
    callbacks = [PolicyCheckpoint(tmp_path / "checkpoints", 1, keep=3)]
    (tmp_path / "checkpoints").mkdir()
    for name in ("step_000099.ckpt", "notes.txt", "my_step_000001.ckpt"):
        (tmp_path / "checkpoints" / name).write_text("not of this run")
    make_trainer(5, callbacks=callbacks, val_every=None).fit(PolicyStub(5))
    assert names(tmp_path) == [
        "last.ckpt",
        "my_step_000001.ckpt",
        "notes.txt",
        "step_000003.ckpt",
        "step_000004.ckpt",
        "step_000005.ckpt",
        "step_000099.ckpt",
    ]


def test_keep_none_keeps_all(tmp_path):
    callbacks = [PolicyCheckpoint(tmp_path / "checkpoints", 1, keep=None)]
    make_trainer(4, callbacks=callbacks, val_every=None).fit(PolicyStub(4))
    assert names(tmp_path) == ["last.ckpt", *(f"step_00000{n}.ckpt" for n in range(1, 5))]


@pytest.mark.parametrize("links", [True, False])
def test_last_outlives_the_other_name(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    fit(tmp_path)
    folder = tmp_path / "checkpoints"
    assert os.path.samefile(folder / "last.ckpt", folder / "step_000006.ckpt") == links
    (folder / "step_000006.ckpt").unlink()
    assert torch.load(folder / "last.ckpt", weights_only=True)["policy_step"] == 6


def test_a_full_disk_stops_the_run_with_the_earlier_checkpoint_whole(tmp_path, monkeypatch):
    def write_until_full(checkpoint, file):
        if checkpoint["policy_step"] == 4:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain_save(checkpoint, file)

    plain_save = torch.save
    monkeypatch.setattr(torch, "save", write_until_full)
    with pytest.raises(OSError, match=r"step_000004\.ckpt could not be written.*No space left"):
        fit(tmp_path)
    assert names(tmp_path) == ["last.ckpt", "step_000002.ckpt"]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt")["policy_step"] == 2


def test_a_shard_that_cannot_be_written_leaves_no_folder(tmp_path):
    def fill_disk(path, weights_only):
        path.mkdir()
        (path / "__1_0.distcp").write_bytes(b"half a shard")
        cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise CheckpointException("write", {1: (cause, StackSummary())})

    trainer: Any = SimpleNamespace(
        strategy=FullyShardedStrategy(), is_global_zero=True, save_checkpoint=fill_disk
    )
    with pytest.raises(OSError, match=r"step_000002\.ckpt could not be .*rank 1: .*No space left"):
        save_whole(trainer, tmp_path / "step_000002.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("settings", "named"), [((0, 1), "every_n_steps=0"), ((1, 0), "keep=0")])
def test_bad_settings_are_named(tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        PolicyCheckpoint(tmp_path, *settings)
