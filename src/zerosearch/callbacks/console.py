"""What people read of a training while it runs: a line per step, the F1 of each evaluation.

Here is decided what is said. How a line looks on the console and in the file: `core/console.py`.
"""

from __future__ import annotations

import logging
import re
import textwrap
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from zerosearch.callbacks.latest import LatestRun
from zerosearch.callbacks.policy_module import PolicyModule
from zerosearch.callbacks.record_callback import RecordCallback
from zerosearch.callbacks.tensorboard_logger import CurveLogger
from zerosearch.core.errors import InputError
from zerosearch.core.outcome import charts_address, name_of, short_path
from zerosearch.core.progress import progress_bar, terminal_bar
from zerosearch.core.ranges import Count
from zerosearch.core.runs import Summary
from zerosearch.core.text import duration
from zerosearch.training.step_record import StepRecord

_OF_STEP = {
    "reward/total": "reward {:.2f}",
    "loss/reply": "loss {:.3f}",
    "loss/turns": "loss {:.3f}",
    "rollout/searches": "searches {:.1f}",
    "curriculum/noise_probability": "noise {:.2f}",
    "loss/kl": "kl {:.3f}",
}
_WIDTH = 90  # of a message: with the time in front a line fits into 100 columns
_PHASES = {"start": "before training", "val": "validation", "test": "after training"}

log = logging.getLogger(__name__)


class ConsoleLines(RecordCallback):
    """Says what came of each policy step and each evaluation, and how far a long one is.

    On a terminal a bar below the lines moves while a step or an evaluation is under way.

    Args:
        every_n_steps: a line for every n-th policy step, and for the first and the last one.

    Raises:
        InputError: it is not positive.
    """

    def __init__(self, every_n_steps: Count = 1) -> None:
        if every_n_steps < 1:
            raise InputError(f"every_n_steps={every_n_steps}: a line every 1 or more policy steps")
        self.every_n_steps = every_n_steps
        self._bar = ExitStack()
        self._advance: Any = None
        self._trains = False  # this process has begun a step
        self._began = (0.0, 0)  # when the fit of this process began, with so many steps done

    # -- lines -------------------------------------------------------------------------------

    def on_record(self, trainer: Trainer, pl_module: PolicyModule, record: StepRecord) -> None:
        if not trainer.is_global_zero:
            return
        if record.phase != "train":
            for said in evaluation_lines(record.phase, record.metrics):
                log.info(said)
            return
        done, steps = pl_module.policy_step, pl_module.policy_steps
        if done % self.every_n_steps == 0 or done in (self._began[1] + 1, steps):
            log.info(step_line(done, steps, record.metrics, self._seconds_left(done, steps)))
        if self._advance is not None:
            self._advance(1)

    def _seconds_left(self, done: int, steps: int) -> float:
        """By the pace since the fit began, its validations included."""
        began, before = self._began
        return (steps - done) * (time.monotonic() - began) / max(1, done - before)

    # -- the bar, on rank 0 ------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._began = (time.monotonic(), pl_module.policy_step)
        self._show_training(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._show_evaluation(trainer, pl_module, trainer.val_dataloaders)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._close()
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING:
            self._show_training(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._show_evaluation(trainer, pl_module, trainer.test_dataloaders)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._close()
        super().on_test_end(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self._trains = True

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        steps = pl_module.policy_steps
        if not self._trains and pl_module.policy_step == steps and trainer.is_global_zero:
            log.info("the training is complete: all %d steps were done before", steps)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self._close()

    def _show_training(self, trainer: Trainer, pl_module: Any) -> None:
        self._close()
        if trainer.is_global_zero:
            bar = terminal_bar("training", pl_module.policy_steps, done=pl_module.policy_step)
            self._advance = self._bar.enter_context(bar)

    def _show_evaluation(self, trainer: Trainer, pl_module: Any, questions: Any) -> None:
        """Count the episodes of this rank; a tuning without engines is soon over."""
        self._close()
        share = getattr(questions, "share", 0)  # of an `EvalLoader`
        if not trainer.is_global_zero or not share:
            return
        rollouter, total = pl_module.rollouter(), share * len(pl_module.evaluations)
        bar = progress_bar(f"{_PHASES[pl_module.phase]}, answers", total)
        rollouter.on_episode = self._bar.enter_context(bar)
        self._bar.callback(setattr, rollouter, "on_episode", None)

    def _close(self) -> None:
        self._advance = None
        self._bar.close()


def say_what_runs(trainer: Trainer, module: Any, per_step: int, summary: Summary) -> None:
    """Say what is trained how, and where, before anything is computed.

    Args:
        trainer: of the run.
        module: that is trained, by RL or by supervision.
        per_step: questions or examples of a step.
        summary: of the run; knows the choices of its groups.
    """
    choices, device = summary.facts.get("choices", {}), trainer.strategy.root_device.type
    devices = trainer.num_devices * trainer.num_nodes
    threads = torch.get_num_threads()
    compute = f" with {threads} thread{'s' * (threads > 1)}" if device == "cpu" else ""
    parts = {"experiment": name_of(summary.facts), "model": module.policy_source.name}
    if (algorithm := getattr(module, "algorithm", None)) is not None:
        simulated = choices.get("search") == "simulated"
        parts |= {
            "algorithm": choices.get("algorithm", ""),
            "engine": choices.get("search", ""),
            "simulator": choices.get("simulator", "") if simulated else "",
            "held out": ", ".join(module.evaluations),
        }
        size = f"{per_step} questions x {algorithm.group_size} episodes"
    else:
        parts["tuned"] = choices.get("tuned", "")
        size = f"{per_step} examples"
    parts |= {
        "a step": f"{size}, {module.policy_steps} steps in all",
        "device": f"{devices} x {device}{compute}",
        "folder": short_path(summary.path.parent),
        "charts": _charts(trainer),
    }
    told = [_fill(f"{name:<11} ", said) for name, said in parts.items() if said.strip()]
    log.info("what runs:\n%s", "\n".join(told))


def _charts(trainer: Trainer) -> str:
    if not any(isinstance(logger, CurveLogger) for logger in trainer.loggers):
        return ""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return "".join(charts_address(each.charts) for each in callbacks if isinstance(each, LatestRun))


def _fill(name: str, said: str) -> str:
    """A line that goes on below where it began; words are not broken."""
    wrap = textwrap.TextWrapper(
        _WIDTH, initial_indent=name, subsequent_indent=" " * len(name), break_long_words=False
    )
    wrap.break_on_hyphens = False
    return wrap.fill(said)


def step_line(done: int, steps: int, metrics: Mapping[str, float], seconds_left: float) -> str:
    """A policy step in one line; what it lacks is left out.

    Args:
        done: policy steps completed.
        steps: of the whole run.
        metrics: of the step, under their TensorBoard paths.
        seconds_left: until the last step has ended.
    """
    parts = [f"step {done:{len(str(steps))}}/{steps}"]
    parts += [text.format(metrics[name]) for name, text in _OF_STEP.items() if name in metrics]
    if "throughput/tokens_per_s" in metrics:
        parts.append(f"{_short(metrics['throughput/tokens_per_s'])} tok/s")
    if done < steps:
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)


def evaluation_lines(phase: str, metrics: Mapping[str, float]) -> list[str]:
    """What an evaluation came to, a line per engine.

    Args:
        phase: of its record, `val/bm25` of an engine or `val` of a tuning.
        metrics: their names begin with it.
    """
    kind, _, engine = phase.partition("/")
    own = {name.removeprefix(f"{kind}/"): value for name, value in metrics.items()}
    said = []
    if "loss" in own:
        accuracy = f", {own['token_accuracy']:.0%} of tokens foretold"
        said.append(f"loss {own['loss']:.3f}{accuracy if 'token_accuracy' in own else ''}")
    engines = [engine] if engine else [n[:-3] for n in own if re.fullmatch(r"[^/]+/f1", n)]
    for name in engines:
        of = {key.removeprefix(f"{name}/"): value for key, value in own.items()}
        if "f1" not in of:
            continue
        line = f"F1 {of['f1']:.3f} ({name}, {of['count']:.0f} questions)"
        line += f", 95% CI {of['f1_low']:.3f}-{of['f1_high']:.3f}"
        said.append(f"{line}, searches {of['rollout/searches']:.2f}")
    return [f"{_PHASES[kind]}: {each}" for each in said]


def _short(number: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"
