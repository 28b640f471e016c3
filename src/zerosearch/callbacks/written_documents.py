"""What a simulator in training wrote to held-out prompts, for people to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from zerosearch.core.files import replacing
from zerosearch.tuning.module import SimulatorTuningModule
from zerosearch.tuning.writing import Written


class WrittenDocuments(Callback):
    """Writes `<dirpath>/<phase>/step_000100.jsonl`: a prompt, the reply and its problems per line.

    Phases are "start", "val" and "test"; with several processes each writes its own share, to
    `step_000100.rank0.jsonl` and so on.

    Args:
        dirpath: folder of the files.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self.dirpath = Path(dirpath)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._write(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, module: SimulatorTuningModule) -> None:
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.dirpath / module.phase / f"step_{module.policy_step:06d}{rank}.jsonl"
        with replacing(path) as file:
            for written in module.written:
                line = json.dumps(_as_row(written), ensure_ascii=False)
                file.write(line.encode(errors="replace") + b"\n")


def _as_row(written: Written) -> dict[str, Any]:
    example = written.example
    return {
        "prompt": example.messages[-1]["content"],
        "noisy": example.noisy,
        "golden_answers": example.golden_answers,
        "written": written.text,
        "problems": written.result.problems,
        "recorded": example.reply,
    }
