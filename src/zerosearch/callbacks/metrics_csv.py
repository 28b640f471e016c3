"""`metrics.csv`: one row per policy step, for people and for tools that do not read TensorBoard."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from zerosearch.callbacks.policy_module import PolicyModule
from zerosearch.callbacks.record_callback import RecordCallback
from zerosearch.core.files import replacing
from zerosearch.core.metrics_file import METRICS_FILE, STEP, Row, read_rows
from zerosearch.training.step_record import StepRecord


class MetricsCsv(RecordCallback):
    """Writes all metrics of the fit to `<dirpath>/metrics.csv`, on rank 0.

    The row `step` i holds what was measured in the policy step that followed i completed ones, and
    in the validations right after it: a validation belongs to the row of the last completed step.
    Evaluations outside `trainer.fit` have no row. A metric that a step does not have is an empty
    cell; columns are sorted by name.

    A row is appended, and the last one completed in place; the whole file is written again where a
    new metric is a new column. A resumed run keeps the rows of the steps before it (of the run that
    it was started from, in a new folder), and its file ends equal to that of an uninterrupted run
    in all but times, throughput and memory.

    Args:
        dirpath: folder of the file.
    """

    of_unfinished = True

    def __init__(self, dirpath: str | Path) -> None:
        self.path = Path(dirpath) / METRICS_FILE
        self._columns: list[str] = []
        self._last: Row = {}  # the last row
        self._last_begins = 0  # byte of the file at which it does

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            source = self.path
            if not source.exists() and trainer.ckpt_path:
                source = Path(trainer.ckpt_path).parent.parent / METRICS_FILE
            rows = read_rows(source) if source.exists() else []
            self._rewrite([row for row in rows if int(row[STEP]) < pl_module.policy_step])

    def on_record(self, trainer: Trainer, pl_module: PolicyModule, record: StepRecord) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        step = str(record.step if record.phase == "train" else record.step - 1)
        values = {name: repr(float(value)) for name, value in record.metrics.items()}
        is_new = self._last.get(STEP) != step
        row = {STEP: step, **values} if is_new else {**self._last, **values}
        if not values.keys() <= {*self._columns}:
            rows = read_rows(self.path)
            self._rewrite([*(rows if is_new else rows[:-1]), row])
            return
        if is_new:
            self._last_begins = self.path.stat().st_size
        self._last = row
        with self.path.open("r+b") as file:
            file.seek(self._last_begins)
            file.write(_lines([row], self._columns))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self, rows: list[Row]) -> None:
        self._columns = sorted(
            {name for row in rows for name, cell in row.items() if cell} - {STEP}
        )
        self._last = rows[-1] if rows else {}
        header = _lines([{name: name for name in (STEP, *self._columns)}], self._columns)
        before = header + _lines(rows[:-1], self._columns)
        self._last_begins = len(before)
        with replacing(self.path) as file:
            file.write(before + _lines(rows[-1:], self._columns))


def _lines(rows: Iterable[Row], columns: list[str]) -> bytes:
    text = io.StringIO(newline="")
    fields = [STEP, *columns]
    writer = csv.DictWriter(text, fields, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writerows(rows)
    return text.getvalue().encode()
