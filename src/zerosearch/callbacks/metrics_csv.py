"""`metrics.csv`: one row per policy step, for people and for tools that do not read TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from zerosearch.callbacks.policy_module import PolicyModule
from zerosearch.callbacks.record_callback import RecordCallback
from zerosearch.core.files import replacing
from zerosearch.training.step_record import StepRecord

FILE_NAME = "metrics.csv"
STEP = "step"


class MetricsCsv(RecordCallback):
    """Writes all metrics of the fit to `<dirpath>/metrics.csv`, on rank 0.

    The row `step` i holds what was measured in the policy step that followed i completed ones, and
    in the validations right after it: a validation belongs to the row of the last completed step.
    Evaluations outside `trainer.fit` have no row. A metric that a step does not have is an empty
    cell; columns are sorted by name.

    The whole file is rewritten at each step (some 100 kB), so that it is never half-written and a
    new metric is a new column. The rows are part of the checkpoint: a resumed run has those of the
    steps before it, wherever it writes, and its file ends equal to that of an uninterrupted run in
    all but times, throughput and memory.

    Args:
        dirpath: folder of the file.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self.path = Path(dirpath) / FILE_NAME
        self._rows: dict[int, dict[str, str]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._write()

    def on_record(self, trainer: Trainer, pl_module: PolicyModule, record: StepRecord) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        row = self._rows.setdefault(pl_module.policy_step - 1, {})
        row.update({name: repr(float(value)) for name, value in record.metrics.items()})
        self._write()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = state_dict["rows"]

    def _write(self) -> None:
        columns = sorted({name for row in self._rows.values() for name in row})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [STEP, *columns], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({STEP: step, **self._rows[step]} for step in sorted(self._rows))
        with replacing(self.path) as file:
            file.write(text.getvalue().encode())
