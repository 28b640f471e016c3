"""Ctrl-C, SIGTERM and SLURM's warnings end training after the policy step, with a checkpoint."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer

from zerosearch.callbacks.stopping import StoppingCallback
from zerosearch.core.runs import REQUEUE_SIGNALS

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, *REQUEUE_SIGNALS)


class GracefulStop(StoppingCallback):
    """Stops the fit cleanly at the first signal; a second one ends the process at once.

    The running policy step is finished, and so is a validation that runs or is due right after
    it (`StoppingCallback`). With several processes one signal to any of
    them stops all of them after the same step.

    Lightning would raise out of the middle of the step at Ctrl-C, and raises after the step at
    SIGTERM, without a checkpoint in either case. Its handlers are therefore replaced while the
    training loop runs, that is from `on_train_start`, which comes after it installs them.

    SIGUSR1 (`sbatch --signal=USR1@300`) and SIGUSR2 (submitit) say that a job's time is nearly up.
    Under SLURM, Lightning would save in the middle of the step and requeue the job; here the run
    ends like at SIGTERM, and its exit code asks for the requeue (scripts/train.sbatch). The
    SIGTERM that SLURM sends when time is up ends nothing sooner.

    Attributes:
        signal_name: "SIGINT", "SIGTERM", "SIGUSR1" or "SIGUSR2" when that ended the training,
            otherwise None; the same in all processes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal_name: str | None = None
        self._received: int = 0
        self._handler: Callable[[int, FrameType | None], None] | None = None
        self._earlier: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that ended by this signal (128 + n); 0 without one."""
        return 128 + signal.Signals[self.signal_name] if self.signal_name else 0

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        # Where SIGUSR1 has a handler, Lightning sets none of its own.
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        ):
            signal.signal(signal.SIGUSR1, _leave)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.signal_name, self._received = None, 0
        if threading.current_thread() is not threading.main_thread():
            log.warning("Training outside the main thread: Ctrl-C and SIGTERM are not handled")
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self._receive(trainer, pl_module, number)

        self._handler = handle
        self._earlier = {number: signal.signal(number, handle) for number in SIGNALS}

    def wants_to_stop(self, trainer: Trainer, pl_module: Any) -> bool:
        """Exchange what was received; True on all ranks when any of them got a signal."""
        received = torch.tensor(self._received, device=trainer.strategy.root_device)
        number = int(trainer.strategy.reduce(received, reduce_op="max"))
        if number:
            self.signal_name = signal.Signals(number).name
        return bool(number)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        # a signal that came after the last step must not get lost
        if self.wants_to_stop(trainer, pl_module) and trainer.is_global_zero:
            log.warning(
                "Training stopped by %s after policy step %d of %d; resume=latest goes on from "
                "there",
                self.signal_name,
                pl_module.policy_step,
                pl_module.policy_steps,
            )
        self._restore(trainer)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._restore(trainer)

    def _receive(self, trainer: Trainer, pl_module: Any, number: int) -> None:
        if self._received:
            is_from_slurm = {self._received, number} & {*REQUEUE_SIGNALS}
            if number == signal.SIGINT or not is_from_slurm:
                self._give_up(trainer, number)
            return
        self._received = number
        name = signal.Signals(number).name
        # the handler may have interrupted a write to the same stream, which then refuses this one
        with suppress(RuntimeError):
            log.warning(
                "%s received: training stops with a checkpoint when policy step %d of %d (and a "
                "validation that runs or is due) has ended. A second signal stops at once and "
                "loses the work since the last checkpoint.",
                name,
                pl_module.policy_step + (not trainer.validating),
                pl_module.policy_steps,
            )

    def _give_up(self, trainer: Trainer, number: int) -> None:
        """Let the second signal do what it does by default, in the launched processes too."""
        self._restore(trainer)
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(number)  # type: ignore[arg-type]
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)
        signal.raise_signal(number)

    def _restore(self, trainer: Trainer) -> None:
        self.restore_validation(trainer)
        for number, handler in self._earlier.items():
            # Lightning silences SIGINT while it shuts down: only take away what is still ours
            if signal.getsignal(number) is self._handler:
                signal.signal(number, handler)
        self._earlier = {}


def _leave(number: int, frame: FrameType | None) -> None:
    """Outside of training there is nothing to finish."""
    raise SystemExit(128 + number)


def stopped_by_signal(trainer: Trainer) -> GracefulStop | None:
    """The `GracefulStop` of this trainer if a signal ended its training, otherwise None."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GracefulStop) and callback.signal_name is not None:
            return callback
    return None
