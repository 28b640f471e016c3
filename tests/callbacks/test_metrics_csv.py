from __future__ import annotations

import csv
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from tests.helpers.policy_stub import PolicyStub, make_record, make_trainer
from zerosearch.callbacks.metrics_csv import MetricsCsv


def read(folder) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    module = PolicyStub(policy_steps=6)
    trainer = make_trainer(6, callbacks=[MetricsCsv(folder)], val_every=3)
    trainer.validate(module, verbose=False)
    trainer.fit(module)
    trainer.test(module, verbose=False)
    return folder, module


def test_one_row_per_policy_step(run):
    assert [row["step"] for row in read(run[0])] == ["0", "1", "2", "3", "4", "5"]


def test_columns_are_sorted_and_grow(run):
    rows = read(run[0])
    assert list(rows[0]) == [
        "step",
        "loss/policy",
        "search/failed",
        "time/rollout_s",
        "val/bm25/f1",
        "val/scripted/f1",
    ]
    assert [row["search/failed"] for row in rows] == ["", "", "", "", "0.5", ""]


def test_validation_is_in_the_row_of_the_step_before_it(run):
    rows, module = read(run[0]), run[1]
    assert [bool(row["val/bm25/f1"]) for row in rows] == [False, False, True] * 2
    assert float(rows[5]["val/bm25/f1"]) == module.weight[1].item()


def test_no_digit_is_lost(run):
    assert float(read(run[0])[5]["loss/policy"]) == run[1].latest.metrics["loss/policy"]


def test_file_is_up_to_date_after_every_step(tmp_path):
    lengths = []
    module = PolicyStub(3, on_step=lambda step: lengths.append(len(read(tmp_path))))
    make_trainer(3, callbacks=[MetricsCsv(tmp_path)], val_every=None).fit(module)
    assert lengths == [0, 1, 2]


def test_a_new_run_in_the_same_folder_starts_a_new_table(tmp_path):
    for steps in (4, 2):
        trainer = make_trainer(steps, callbacks=[MetricsCsv(tmp_path)], val_every=None)
        trainer.fit(PolicyStub(steps))
    assert len(read(tmp_path)) == 2


@pytest.mark.parametrize("val_every", [None, 1])
def test_rows_are_appended_and_nothing_of_them_is_in_a_checkpoint(tmp_path, val_every):
    inodes = []
    module = PolicyStub(
        4, on_step=lambda _: inodes.append((tmp_path / "metrics.csv").stat().st_ino)
    )
    callback = MetricsCsv(tmp_path)
    make_trainer(4, callbacks=[callback], val_every=val_every).fit(module)
    assert len(set(inodes[1:])) == 1, "the file is the same; at first its columns were new"
    assert callback.state_dict() == {}


def test_the_step_in_which_a_run_dies_has_its_row(tmp_path):
    def die(step: int) -> None:
        if step == 2:
            module.latest = make_record(2, "train", [], metrics={"loss/policy": 7.0})
            raise RuntimeError("an outage")

    module = PolicyStub(4, on_step=die)
    with pytest.raises(RuntimeError, match="an outage"):
        make_trainer(4, callbacks=[MetricsCsv(tmp_path)], val_every=None).fit(module)
    assert [(row["step"], row["loss/policy"]) for row in read(tmp_path)][2:] == [("2", "7.0")]


@pytest.mark.parametrize(("is_global_zero", "writes"), [(True, True), (False, False)])
def test_only_rank_zero_writes(tmp_path, is_global_zero, writes):
    trainer: Any = SimpleNamespace(
        is_global_zero=is_global_zero,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        ckpt_path=None,
    )
    callback, module = MetricsCsv(tmp_path), PolicyStub()
    callback.on_train_start(trainer, module)
    callback.on_record(trainer, module, make_record(0, "train", [], metrics={"a": 1.0}))
    assert (tmp_path / "metrics.csv").exists() == writes
