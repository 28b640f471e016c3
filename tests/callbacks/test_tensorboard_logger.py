"""Curves for TensorBoard: what is one, and that each has every step once and in order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.callbacks.tensorboard_logger import MOST, CurveLogger

STEPS = 9


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """In the order in which they were written, file after file.

    TensorBoard orders files by the second in their names; here several are of one second.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir(), key=lambda file: int(file.name.rpartition(".")[2])):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                point = (event.step, tensor_util.make_ndarray(value.tensor).item())
                found.setdefault(value.tag, []).append(point)
    return found


def log(logger: CurveLogger, rows: list[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    for step, row in enumerate(rows):
        logger.log_metrics(row, step)
    logger.save()
    return curves(Path(logger.log_dir))


def test_a_curve_has_several_values_and_not_only_zeros(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [
        {"zero": 0.0, "late": 0.0, "same": 2.0, "start/f1": 0.1, "falls": 1.0},
        {"zero": 0.0, "late": 0.0, "same": 2.0, "start/f1": 0.2, "falls": 0.0},
        {"zero": 0.0, "late": 0.5, "same": 2.0, "test/x/f1": 0.1, "once": 1.0},
    ]
    assert log(CurveLogger(tmp_path), rows) == {
        "same": [(0, 2.0), (1, 2.0), (2, 2.0)],
        "falls": [(0, 1.0), (1, 0.0)],
        "late": [(0, 0.0), (1, 0.0), (2, 0.5)],
    }


def test_values_keep_the_time_at_which_they_were_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([100.0, 200.0, 300.0])
    clock = SimpleNamespace(time=lambda: next(times))
    monkeypatch.setattr("zerosearch.callbacks.tensorboard_logger.time", clock)
    log(CurveLogger(tmp_path), [{"late": 0.0}, {"late": 0.0}, {"late": 1.0}])
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [event.wall_time for event in board.Scalars("late")] == [100.0, 200.0, 300.0]


def test_a_bound_that_is_zero_is_drawn_with_its_value(tmp_path: Path) -> None:
    row = {"val/bm25/f1": 0.1, "val/bm25/f1_low": 0.0, "val/bm25/f1_high": 0.2}
    none = dict.fromkeys(row, 0.0)
    assert log(CurveLogger(tmp_path / "zero"), [none, none, none]) == {}
    found = log(CurveLogger(tmp_path / "some"), [none, none, row, row])
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(row, 4)
    assert [value for _, value in found["val/bm25/f1_low"]] == [0.0] * 4


def test_of_an_engine_what_is_looked_at_is_a_curve(tmp_path: Path) -> None:
    kept = {
        "f1",
        "em",
        "failed",
        "hops_2/f1",
        "stop/eos",
        "rollout/searches",
        "search/answer_in_noisy",
    }
    left = {"count", "em_low", "hops_2/em", "search/latency_s_p95", "rollout/valid"}
    row = {f"val/bm25/{name}": 1.0 for name in kept | left} | {"val/loss": 1.0}
    found = log(CurveLogger(tmp_path), [row, row])
    assert found.keys() == {f"val/bm25/{name}" for name in kept} | {"val/loss"}


def test_there_are_at_most_so_many_and_the_headline_is_among_them(tmp_path: Path) -> None:
    engines = [f"engine_{n}" for n in range(5)]
    many = {f"my/{n}": 1.0 for n in range(200)}
    late = {f"val/{engine}/f1{end}": 1.0 for engine in engines for end in ("", "_low", "_high")}
    found = log(CurveLogger(tmp_path), [many, many, late | {"search/failed": 1.0}] * 2)
    assert late.keys() | {"search/failed"} <= found.keys()
    assert len(found) <= MOST


class Killed(BaseException):
    """Stands for a process that dies: nothing of the run is saved after it."""


def metrics_of(step: int) -> dict[str, float]:
    """One metric is zero until step 5, one in every third step, one is there but once."""
    late = (
        {"late": float(step >= 5), "thirds": 1.0} if step % 3 == 0 or step >= 5 else {"late": 0.0}
    )
    return {"zero": 0.0, "loss": 1.0 + step, **late, **({"once": 1.0} if step == 2 else {})}


def fit(folder: Path, die_in: int | None = None, source: Path | None = None) -> None:
    def step(number: int) -> None:
        for logger in module.loggers:
            logger.log_metrics(metrics_of(number), number)
        if number == die_in:
            raise Killed

    module = PolicyStub(STEPS, step)
    logger = CurveLogger(folder / "tensorboard")
    saving: list[Callback] = [PolicyCheckpoint(folder / "checkpoints", 2)]
    plugins: Any = [AtomicCheckpointIO()]
    trainer = make_trainer(STEPS, callbacks=saving, val_every=4, plugins=plugins, logger=[logger])
    last = (source or folder) / "checkpoints" / "last.ckpt"
    try:
        trainer.fit(module, ckpt_path=last if last.exists() else None, weights_only=True)
    except Killed:
        logger.save()  # what stood in its files by then


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, float]]]:
    folder = tmp_path_factory.mktemp("whole")
    fit(folder)
    return curves(folder / "tensorboard")


def test_a_whole_run_has_each_step_of_a_curve(whole: dict[str, list[tuple[int, float]]]) -> None:
    assert whole == {
        "loss": [(n, 1.0 + n) for n in range(STEPS)],
        "late": [(n, float(n >= 5)) for n in range(STEPS)],
        "thirds": [(n, 1.0) for n in (0, 3, 5, 6, 7, 8)],
    }


@pytest.mark.parametrize("kills", [(1,), (3,), (4,), (5,), (6,), (7,), (3, 5), (5, 6, 7), (0,)])
def test_invariant_13_a_killed_run_that_goes_on_has_the_same_curves(
    kills: tuple[int, ...], whole: dict[str, list[tuple[int, float]]], tmp_path: Path
) -> None:
    for step in kills:
        fit(tmp_path, die_in=step)
    if not (tmp_path / "checkpoints" / "last.ckpt").exists():
        (kept,) = [p for p in (tmp_path / "tensorboard").iterdir()]
        kept.unlink()  # `Run.start_over`
    fit(tmp_path)
    assert curves(tmp_path / "tensorboard") == whole


def test_a_run_in_another_folder_has_the_curves_of_its_own_steps(tmp_path: Path) -> None:
    fit(tmp_path / "old", die_in=5)
    fit(tmp_path / "new", source=tmp_path / "old")
    found = curves(tmp_path / "new" / "tensorboard")
    assert found["loss"] == [(n, 1.0 + n) for n in range(4, STEPS)]
    assert found["late"] == [(n, float(n >= 5)) for n in range(4, STEPS)]
    assert found.keys() == {"loss", "late", "thirds"}
