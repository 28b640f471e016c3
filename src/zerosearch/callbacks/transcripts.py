"""Transcripts: what the policy wrote, asked, read and answered, with its reward."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from zerosearch.callbacks.policy_module import PolicyModule
from zerosearch.callbacks.record_callback import RecordCallback
from zerosearch.callbacks.transcript_markdown import transcript_markdown
from zerosearch.callbacks.transcript_text import transcript_json
from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.core.ranges import Count, CountOrZero
from zerosearch.training.step_record import StepRecord

TRAIN = "train"


class TranscriptWriter(RecordCallback):
    """Writes `<dirpath>/<phase>/step_000012.jsonl`, one trajectory per line.

    The number is that of the record: policy steps completed before it. Phases are "train" and one
    per evaluation, for example "val/bm25". With several processes each writes its own
    trajectories, to `step_000012.rank0.jsonl` and so on. A resumed run overwrites the files of the
    steps it repeats.

    Each evaluation also shows its first trajectories as text in TensorBoard: the same questions
    every time, so that their change can be watched.

    Args:
        dirpath: folder of the transcripts.
        every_n_steps: write every n-th policy step; evaluations are always written.
        max_per_step: trajectories per file and process, None for all.
        tensorboard_examples: trajectories per evaluation in TensorBoard, 0 for none.
        token_values: first trajectories of each file that keep the log-prob of every sampled token,
            and in training the entropy, which the pass that learns from it computes anyway; None
            for all.

    Raises:
        InputError: a number is out of its range.
    """

    of_unfinished = True

    def __init__(
        self,
        dirpath: str | Path,
        every_n_steps: Count = 1,
        max_per_step: Count | None = None,
        tensorboard_examples: CountOrZero = 4,
        token_values: CountOrZero | None = 8,
    ) -> None:
        if every_n_steps < 1:
            raise InputError(f"every_n_steps={every_n_steps}: write every 1 or more policy steps")
        if max_per_step is not None and max_per_step < 1:
            raise InputError(f"max_per_step={max_per_step}: write at least 1, or null for all")
        if tensorboard_examples < 0:
            raise InputError(f"tensorboard_examples={tensorboard_examples}: 0 or more")
        if token_values is not None and token_values < 0:
            raise InputError(f"token_values={token_values}: 0 or more, or null for all")
        self.dirpath = Path(dirpath)
        self.every_n_steps = every_n_steps
        self.max_per_step = max_per_step
        self.tensorboard_examples = tensorboard_examples
        self.token_values = token_values

    def on_fit_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:
        """Ask for the entropies of the trajectories that are written with their tokens."""
        numbers = (self.max_per_step, self.token_values)
        pl_module.watched = min(sys.maxsize if each is None else each for each in numbers)

    def on_record(self, trainer: Trainer, pl_module: PolicyModule, record: StepRecord) -> None:
        if record.phase == TRAIN:
            if record.step % self.every_n_steps == 0:
                self._write(trainer, pl_module, record)
            return
        self._write(trainer, pl_module, record)
        if trainer.is_global_zero:
            self._show(trainer, record)

    def _write(self, trainer: Trainer, pl_module: PolicyModule, record: StepRecord) -> None:
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.dirpath / record.phase / f"step_{record.step:06d}{rank}.jsonl"
        count = len(record.trajectories[: self.max_per_step])
        with_tokens = len(record.trajectories[: self.token_values])
        text_of = pl_module.text_of() if with_tokens else None
        with replacing(path) as file:
            for index in range(count):
                row = transcript_json(record, index, text_of if index < with_tokens else None)
                line = json.dumps(row, ensure_ascii=False)
                file.write(line.encode(errors="replace") + b"\n")

    def _show(self, trainer: Trainer, record: StepRecord) -> None:
        count = min(self.tensorboard_examples, len(record.trajectories))
        if count == 0:
            return
        text = "\n\n---\n\n".join(transcript_markdown(record, index) for index in range(count))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(f"transcripts/{record.phase}", text, record.step)
