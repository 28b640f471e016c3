"""Checkpoints every n policy steps that a resumed run continues exactly.

Lightning's ModelCheckpoint counts optimizer updates, of which a policy step has several and not
always the same number, and never fires when that count steps over a multiple of n.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.checkpoint import CheckpointException

from zerosearch.callbacks.event_files import cut_back, event_file_sizes, held_back
from zerosearch.callbacks.policy_module import PolicyModule
from zerosearch.core.errors import FileError, InputError, NonFiniteError
from zerosearch.core.files import flush_folder, flush_tree, free_space, replacing
from zerosearch.core.ranges import Count
from zerosearch.training.failures import SearchOutage, TrainingCollapse

log = logging.getLogger(__name__)

NAME = re.compile(r"step_(\d+)\.ckpt")
LAST = "last.ckpt"
HEALTHY = "healthy.ckpt"


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning will validate after the training batch whose end hooks are running.

    Where there is nothing to validate on it says that a validation is due, and calls no hook of it.
    """
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return not loop.epoch_loop.val_loop.skip and loop.epoch_loop._should_check_val_fx(
        loop._data_fetcher
    )


class PolicyCheckpoint(Checkpoint):
    """Saves `step_000010.ckpt` after 10 policy steps, and `last.ckpt` as a link to the newest.

    It saves every n policy steps, after the last one, when training is asked to stop, and when the
    search engine is lost or an error ends the run before it has changed anything: then what was
    there after the last whole step. Where a
    validation follows a step, it saves after the validation: a checkpoint made before it would
    make Lightning skip that validation in the resumed run. Such a checkpoint is missing when the
    process dies during the validation; then the run resumes from the one before and repeats it.

    How good the policy of a checkpoint is, the next policy step shows, which samples from it. Until
    `HealthMonitor` has found that step healthy, `healthy.ckpt` is a link to the newest checkpoint
    that it did find healthy. When the run collapses, nothing more is saved and `last.ckpt` becomes
    that one.

    A checkpoint says how long TensorBoard's files were, and what was held back from them: what a
    killed process has logged after it is taken back when the run goes on, and each step stands
    there once.

    Being a `Checkpoint`, it runs after all other callbacks, so that what they wrote for a step is
    there whenever the checkpoint of the step is.

    Args:
        dirpath: folder of the checkpoints.
        every_n_steps: policy steps between checkpoints.
        keep: how many of the newest `step_*.ckpt` to keep, None for all; the disk must hold one
            more. Checkpoints of later steps, left by a run that was resumed from an earlier one,
            are not touched.

    Raises:
        InputError: `every_n_steps` or `keep` is below 1.
    """

    def __init__(
        self, dirpath: str | Path, every_n_steps: Count = 10, keep: Count | None = 1
    ) -> None:
        if every_n_steps < 1:
            raise InputError(f"every_n_steps={every_n_steps}: save every 1 or more policy steps")
        if keep is not None and keep < 1:
            raise InputError(f"keep={keep}: keep at least 1 checkpoint, or null for all of them")
        self.dirpath = Path(dirpath)
        self.every_n_steps = every_n_steps
        self.keep = keep
        self._saved_step: int | None = None
        self._healthy: Path | None = None  # the newest checkpoint that was found healthy
        self._event_files: dict[str, int] = {}  # sizes after the last whole step
        self._held_back: list[dict[str, Any]] = []  # by their loggers then
        self._updates = -1  # of the optimizers until then
        self._candidates: list[int] = []  # steps of later ones, which may yet be found so

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.is_global_zero:
            checkpoint["event_files"] = self._event_files
            checkpoint["held_back"] = self._held_back

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.is_global_zero and "event_files" in checkpoint:  # not in those of before
            cut_back(trainer.loggers, checkpoint["event_files"], checkpoint.get("held_back", []))
        if "loops" in checkpoint:
            # A step that was begun when this was saved begins again. Lightning takes it back in its
            # count of the epoch, and goes by its count of all steps to know when to validate.
            count = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
            count["ready"] = count["started"] = count["processed"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._note_whole(trainer)
        self._saved_step = pl_module.policy_step  # what a resumed run starts from is on disk
        present, healthy = self._path(pl_module.policy_step), self.dirpath / HEALTHY
        found = present if pl_module.healthy else healthy
        self._healthy = found if found.exists() else None
        self._candidates = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self._note_whole(trainer)
        self._judge(trainer, pl_module.policy_step - 1 - pl_module.lag, pl_module.healthy)
        if not validation_follows(trainer):
            self._save_if_due(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._note_whole(trainer)
            self._save_if_due(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        if pl_module.policy_step != self._saved_step and (
            isinstance(exception, SearchOutage) or self._leaves_whole(trainer, exception)
        ):
            try:
                self._save(trainer, pl_module)
            except FileError as error:  # what ends the run is shown, whatever happens here
                log.error("Nothing could be saved: %s", error)
        if isinstance(exception, TrainingCollapse) and trainer.is_global_zero:
            self._go_back()

    def _note_whole(self, trainer: Trainer) -> None:
        """Before a step begins that may die, having logged something."""
        self._updates = trainer.global_step
        if trainer.is_global_zero:
            self._event_files = event_file_sizes(trainer.loggers)
            self._held_back = held_back(trainer.loggers)

    def _leaves_whole(self, trainer: Trainer, exception: BaseException) -> bool:
        """Whether an error that is no outage, a defect say, leaves what the last step has left.

        Not from the middle of an update, and not on one rank of several: saving takes all of them.
        """
        return (
            isinstance(exception, Exception)
            and not isinstance(exception, (FileError, NonFiniteError, TrainingCollapse))
            and trainer.state.fn == TrainerFn.FITTING
            and trainer.world_size == 1
            and trainer.global_step == self._updates
        )

    def _save_if_due(self, trainer: Trainer, pl_module: PolicyModule) -> None:
        step = pl_module.policy_step
        last = step >= pl_module.policy_steps or trainer.should_stop
        if step == self._saved_step or (step % self.every_n_steps and not last):
            return
        self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, pl_module: PolicyModule) -> None:
        step = pl_module.policy_step
        path = self._path(step)
        save_whole(trainer, path)
        self._saved_step = step
        if trainer.is_global_zero:
            if self._healthy is not None and not (self.dirpath / HEALTHY).exists():
                _point(HEALTHY, self._healthy)
            _point(LAST, path)
        if pl_module.healthy:
            self._candidates.append(step)
            if step >= pl_module.policy_steps:
                self._judge(trainer, step, healthy=True)  # no step follows that could doubt it
        if trainer.is_global_zero:
            self._prune(step)
            log.info("checkpoint of step %d: %s", step, path.name)

    def _path(self, step: int) -> Path:
        return self.dirpath / f"step_{step:06d}.ckpt"

    def _judge(self, trainer: Trainer, sampled: int, healthy: bool) -> None:
        """A step has sampled from the policy as it was after `sampled` policy steps."""
        found = [step for step in self._candidates if step <= sampled]
        self._candidates = [step for step in self._candidates if step > sampled]
        if not found or not healthy:
            return
        self._healthy = self._path(found[-1])
        if trainer.is_global_zero:
            _remove(self.dirpath / HEALTHY)
            if self._candidates:  # last.ckpt is one of them
                _point(HEALTHY, self._healthy)
            self._prune(found[-1])

    def _go_back(self) -> None:
        last, healthy = self.dirpath / LAST, self.dirpath / HEALTHY
        if healthy.exists():
            _point(LAST, healthy)
        elif self._healthy is None:
            log.error("No checkpoint of a healthy policy was saved: start a new run")
            return
        log.error(
            "The last checkpoint of a healthy policy is %s: go on from it with other settings", last
        )

    def _prune(self, step: int) -> None:
        if self.keep is None:
            return
        matches = [(NAME.fullmatch(path.name), path) for path in self.dirpath.iterdir()]
        past = sorted((int(m[1]), path) for m, path in matches if m and int(m[1]) <= step)
        healthy = (self.dirpath / HEALTHY).resolve()
        for number, path in past[: -self.keep]:
            if number in self._candidates or path == healthy:  # which a symbolic link only names
                continue
            _remove(path)


def save_whole(trainer: Trainer, path: Path) -> None:
    """Save a checkpoint that appears under `path` only when it is whole; called by all ranks.

    Raises:
        FileError: it could not be written; names the path, the free space and the remedy.
    """
    if not isinstance(trainer.strategy, ModelParallelStrategy):
        # atomic by AtomicCheckpointIO, or else by Lightning's own writer
        trainer.save_checkpoint(path, weights_only=False)
        return
    # a sharded checkpoint is a folder that all ranks write into
    part = path.with_name(f".{path.name}.part")
    if trainer.is_global_zero:
        _remove(part)
    trainer.strategy.barrier("checkpoint folder cleared")
    try:
        trainer.save_checkpoint(part, weights_only=False)
    except CheckpointException as error:  # on every rank, whichever could not write
        if trainer.is_global_zero:
            _remove(part)
        rank, (cause, _) = next(iter(error.failures.items()))
        raise FileError(
            f"{path} could not be written (rank {rank}: {cause}; {free_space(path.parent)}): free "
            "disk space or choose another folder; earlier checkpoints are intact"
        ) from error
    if trainer.is_global_zero:
        flush_tree(part)
        _remove(path)
        os.replace(part, path)
        flush_folder(path.parent)
    trainer.strategy.barrier("checkpoint in place")


def _point(name: str, path: Path) -> None:
    """Make `name` the checkpoint `path`: a hard link, so that it outlives the other name.

    Folders get a symbolic link, and disks without hard links a copy.
    """
    target, link = path.with_name(name), path.with_name(f".{name}.link")
    _remove(link)
    if path.is_dir():
        link.symlink_to(path.resolve().name)
    else:
        try:
            os.link(path, link)
        except OSError:
            with path.open("rb") as source, replacing(target) as copy:
                shutil.copyfileobj(source, copy)
            return
    os.replace(link, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
