"""Tuning of a byte-level model on a few rows, in a second or two."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from tests.helpers.policy_stub import make_trainer
from tests.helpers.runs import computed, read_metrics
from zerosearch.callbacks.graceful_stop import GracefulStop
from zerosearch.callbacks.metrics_csv import MetricsCsv
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.source import PolicySource
from zerosearch.policy.weight_stream import gather
from zerosearch.training.schedule import warmup_schedule
from zerosearch.tuning.datamodule import TuningData
from zerosearch.tuning.module import SimulatorTuningModule
from zerosearch.tuning.tuning_module import TuningModule
from zerosearch.tuning.tuning_set import TuningFiles, TuningSet

M = TypeVar("M", bound=TuningModule[Any, Any])


class Watching(TuningModule[Any, Any]):
    """Keeps the gradient and loss of every update."""

    gradients: list[dict[str, Tensor]]
    poisoned: frozenset[int] = frozenset()  # steps in which a gradient is no number
    held = 0  # gradients that were left after the updates

    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()
        self.gradients, self.losses = [], []
        made["optimizer"].register_step_pre_hook(self._look)
        return made

    def _look(self, *_: Any) -> None:
        assert self.model is not None
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.gradients.append(
            {n: gather(p.grad).clone() for n, p in named.items() if p.grad is not None}
        )

    def training_step(self, *arguments: Any) -> None:
        super().training_step(*arguments)
        self.losses.append(self.train_metrics.get(self.loss_name))
        self.held += sum(parameter.grad is not None for parameter in self.parameters())

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().manual_backward(loss, *args, **kwargs)
        gradient = next(self.parameters()).grad
        if self.policy_step in self.poisoned and gradient is not None:
            gradient[0, 0] = math.nan


class StopAfter(Callback):
    """Ends a run as Ctrl-C does, after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.policy_step == self.step:
            raise KeyboardInterrupt


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


def make_data(rows: Path, examples_per_step: int = 6) -> TuningData[TuningSet]:
    files = TuningFiles(train=str(rows), prompt_template="compact", validation_share=0.2)
    return TuningData(files, examples_per_step=examples_per_step)


def make_module(
    source: PolicySource,
    data: TuningData[TuningSet],
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


def assert_goes_on_bit_for_bit(run: Callable[..., Any], folder: Path) -> None:
    """Run six steps, stop another run after three, and go on from its second to the same end.

    Args:
        run: with callbacks, `steps` and `resume`; returns the module.
        folder: takes what the runs write.
    """

    def callbacks(name: str) -> list[Callback]:
        place = folder / name
        return [MetricsCsv(place), GracefulStop(), PolicyCheckpoint(place / "checkpoints", 1)]

    alone = run(*callbacks("alone"), steps=6)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(StopAfter(3), *callbacks("stopped"), steps=6)
    last = folder / "stopped" / "checkpoints" / "step_000002.ckpt"
    again = run(*callbacks("stopped"), steps=6, resume=last)
    assert again.losses == alone.losses[-len(again.losses) :] and len(again.losses) >= 3
    for name, weight in alone.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    assert again.validation_metrics == alone.validation_metrics
    ours, theirs = ([*map(computed, read_metrics(folder / name))] for name in ("stopped", "alone"))
    assert ours == theirs


def tune(
    module: M,
    data: TuningData[Any],
    *callbacks: Callback,
    resume: Path | None = None,
    start: bool = False,
    **trainer: Any,
) -> M:
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
        module.phase = "start"
        made.test(module, data, verbose=False)
        module.phase = "val"
    made.fit(module, data, ckpt_path=resume, weights_only=True)
    return module
