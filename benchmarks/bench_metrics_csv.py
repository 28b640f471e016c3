"""What `metrics.csv` costs a policy step as it grows: seconds of a row, and of a new column.

Run:  python benchmarks/bench_metrics_csv.py [--steps 5000] [--columns 200]

The first half of the columns is of the step; the others come later, a tenth of them at each of ten
validations, which is worse than any run of ours: names come with the first validation. Rows are
flushed to the disk (`fsync`), so that the disk's share is in every number. A new column writes the
file again. Printed per thousand steps; last the bytes that a checkpoint holds of it.

On one core, 5,000 steps of 200 columns (8.8 MB): a row 0.3 ms at the first step and at the last,
a new column 0.02 s after 500 steps and 0.29 s after 5,000, nothing in a checkpoint.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from lightning.pytorch.trainer.states import TrainerFn

from zerosearch.callbacks.metrics_csv import MetricsCsv
from zerosearch.training.step_record import StepRecord

VALIDATIONS = 10  # at which names are new


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--columns", type=int, default=200)
    arguments = parser.parse_args()
    names = [f"group{number % 9}/metric_{number}" for number in range(arguments.columns)]
    first, late = names[: len(names) // 2], names[len(names) // 2 :]
    every = arguments.steps // VALIDATIONS
    fitting = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING), is_global_zero=True)
    trainer = cast(Any, SimpleNamespace(**vars(fitting), ckpt_path=None))
    with tempfile.TemporaryDirectory() as folder:
        table = MetricsCsv(folder)
        table.on_train_start(trainer, SimpleNamespace(policy_step=0))

        def seconds(step: int, phase: str, values: list[str]) -> float:
            record = StepRecord(
                step=step, phase=phase, metrics={name: step / 7 + 0.1 for name in values}
            )
            started = time.perf_counter()
            table.on_record(trainer, cast(Any, None), record)
            return time.perf_counter() - started

        rows, columns = list[float](), list[float]()
        for step in range(arguments.steps):
            rows.append(seconds(step, "train", first))
            if (step + 1) % every == 0:
                known = late[: len(late) * (step + 1) // arguments.steps]
                columns.append(seconds(step + 1, "val/own", known))
            if (step + 1) % 1000 == 0 or step + 1 == arguments.steps:
                size = (Path(folder) / "metrics.csv").stat().st_size
                row = f"{1e3 * statistics.median(rows):.2f} ms (most {1e3 * max(rows):.2f})"
                new = ", ".join(f"{each:.2f} s" for each in columns)
                print(f"step {step + 1}: {size / 1e6:.1f} MB, a row {row}, new columns {new}")
                rows, columns = [], []
        print(f"{len(pickle.dumps(table.state_dict()))} bytes of a checkpoint")


if __name__ == "__main__":
    main()
