"""Tuning of a byte-level model on a few rows, in a second or two."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from tests.helpers.policy_stub import make_trainer
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.source import PolicySource
from zerosearch.training.schedule import warmup_schedule
from zerosearch.tuning.datamodule import TuningData
from zerosearch.tuning.module import SimulatorTuningModule
from zerosearch.tuning.tuning_set import TuningFiles


def write_rows(path: Path, count: int = 30) -> Path:
    """Rows as `zerosearch judge` makes them, with replies of unequal lengths."""
    rows = [
        {
            "id": str(n),
            "question": f"Q{n // 2}",
            "golden_answers": [f"A{n // 2}"],
            "query": f"q{n // 2}",
            "quality": "noisy" if n % 2 else "useful",
            "documents": [
                {"title": "", "text": "nothing " * (1 + n % 5) if n % 2 else f"A{n // 2}."}
            ],
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_data(rows: Path, examples_per_step: int = 6) -> TuningData:
    files = TuningFiles(train=str(rows), prompt_template="compact", validation_share=0.2)
    return TuningData(files, examples_per_step=examples_per_step)


def make_module(
    source: PolicySource,
    data: TuningData,
    *,
    steps: int = 4,
    lr: float = 0.01,
    module: type[SimulatorTuningModule] = SimulatorTuningModule,
    **fields: Any,
) -> SimulatorTuningModule:
    settings: dict[str, Any] = {
        "fidelity_examples": 4,
        "max_reply_tokens": 12,
        "tokens_per_micro_batch": 200,
        "logprob_chunk_tokens": 64,
        **fields,
    }
    made = module(
        policy=source,
        generator=TransformersGenerator(),
        optimizer=partial(torch.optim.AdamW, lr=lr),
        schedule=warmup_schedule,
        steps=steps,
        **settings,
    )
    made.template = data.examples.template
    return made


def tune(
    module: SimulatorTuningModule,
    data: TuningData,
    *callbacks: Callback,
    resume: Path | None = None,
    start: bool = False,
    **trainer: Any,
) -> SimulatorTuningModule:
    """Run the tuning to its last step, or to where a callback stops it.

    Args:
        module: what is tuned.
        data: its rows.
        callbacks: of the trainer.
        resume: checkpoint to go on from.
        start: evaluate before the first step, as a run does.
        trainer: further arguments of the trainer.
    """
    made = make_trainer(module.policy_steps, callbacks=list(callbacks), val_every=2, **trainer)
    if start:
        made.test(module, data, verbose=False)
    made.fit(module, data, ckpt_path=resume, weights_only=True)
    return module
