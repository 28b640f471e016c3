"""Which trained policy a command means by `checkpoint=`, or without it.

Light on imports: what cannot be had is said before anything is loaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zerosearch.command_line.arguments import override_key, tunes_simulator
from zerosearch.core.errors import InputError
from zerosearch.core.runs import (
    EXPORT,
    LAST_CHECKPOINT,
    LATEST,
    PROMPT_FILE,
    SETTINGS_FILE,
    is_checkpoint,
    read_summary,
)
from zerosearch.core.sweep_folder import is_sweep_folder, name_a_run

if TYPE_CHECKING:
    from omegaconf import DictConfig

LOADING = ("dtype", "attn_implementation")  # of `model`: how a policy is loaded, not which one

log = logging.getLogger(__name__)

_TUNING = "it tuned a simulator, which simulator=<its folder simulator/> uses, and holds no policy"


def choose_policy(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Settle `checkpoint` where it names no place, and say which policy that is.

    Without `checkpoint=` it is the last completed run, unless `model=` was given: then that model
    is meant, as it is. `latest`, the word or the link of a task folder, is the newest run where
    that has a policy, or else the newest one that has.

    Args:
        cfg: with `checkpoint`, `agent`, `paths`, and `methods` where it fills a table.
        overrides: of the command line.

    Raises:
        InputError: there is no such run, or nothing that holds a policy at the place named.
    """
    training = Path(cfg.paths.log_dir) / "train"
    if cfg.checkpoint is None:
        if not _plays_a_policy(cfg) or _is_model_given(cfg, overrides):
            return
        run, why = newest_policy(training, completed=True), "the last completed run"
        if run is None:
            raise InputError(
                f"checkpoint=null, and no run under {_shown(training)} was completed: train one "
                "(zerosearch train), name a policy with checkpoint=, or an untrained model with "
                "model= (model=quickstart is what zerosearch train begins with)"
            )
    elif (task := _task_of_latest(str(cfg.checkpoint), training)) is not None:
        run, why = _latest_policy(task)
    else:
        check_place(str(cfg.checkpoint))
        return
    log.info("checkpoint: %s (%s)", _shown(run), "; ".join([why, *_score(run)]))
    cfg.checkpoint = str(run)


def newest_policy(task_folder: Path, *, completed: bool = False) -> Path | None:
    """The run that has written its policy last, by an export or a checkpoint.

    Args:
        task_folder: with runs, sweeps of them and the link to the latest.
        completed: whether it must have come to its end.
    """
    places = [
        *task_folder.glob("runs/*"),
        *task_folder.glob("multiruns/*/*"),
        task_folder / LATEST,  # may lie elsewhere
    ]
    runs = {place.resolve() for place in places if place.is_dir()}
    written = {run: time for run in runs if (time := policy_written(run)) is not None}
    for run in sorted(written, key=lambda run: (written[run], run.name), reverse=True):
        if not tunes_simulator(run) and not (
            completed and read_summary(run).get("status") != "completed"
        ):
            return run
    return None


def policy_written(run: Path) -> int | None:
    """When a run has written its policy last, in nanoseconds; None: it never has."""
    last = run / LAST_CHECKPOINT
    files = [run / EXPORT / SETTINGS_FILE, last / "meta.pt" if last.is_dir() else last]
    return max((file.stat().st_mtime_ns for file in files if file.is_file()), default=None)


def check_place(place: str) -> None:
    """Refuse a `checkpoint=` that holds no policy; names of the hub pass.

    Raises:
        InputError: says what the place is or what it lacks.
    """
    path = Path(place)
    if (path / PROMPT_FILE).is_file() and (path / SETTINGS_FILE).is_file():
        raise InputError(f"checkpoint={place} is a tuned simulator, no policy: simulator={place}")
    if is_checkpoint(path):
        if tunes_simulator(path.resolve().parent.parent):
            raise InputError(f"checkpoint={place} is of another kind of run: {_TUNING}")
        return
    if tunes_simulator(path):
        raise InputError(f"checkpoint={place}: {_TUNING}")
    if policy_written(path) is not None or (path / "config.json").is_file():
        return
    if is_sweep_folder(path):
        raise InputError(f"checkpoint={place} {name_a_run(path)}")
    if (path / ".hydra").is_dir():
        error = read_summary(path).get("error")
        raise InputError(
            f"checkpoint={place} has no policy: a training run leaves {LAST_CHECKPOINT} every "
            f"callbacks.checkpoint.every_n_steps steps, and {EXPORT}/ at its end"
            + (f"; this run ended with {error}" if error else "")
        )
    if path.is_dir():
        raise InputError(
            f"checkpoint={place} is neither a run folder nor a model (it has no config.json)"
        )
    if not path.exists() and not _may_be_of_the_hub(place):
        raise InputError(f"checkpoint={place}: there is nothing at this path")


def _may_be_of_the_hub(place: str) -> bool:
    """Whether it reads as `name` or `owner/name`, and not as a file or a folder."""
    path = Path(place)
    if place.startswith((".", "~")) or path.suffix == ".ckpt":
        return False
    return len(path.parts) == 1 or (len(path.parts) == 2 and not path.parent.is_dir())


def _plays_a_policy(cfg: DictConfig) -> bool:
    """Whether a model of this process is asked at all: not a server, not prompted methods alone."""
    rows = cfg.get("methods")
    asked = rows is None or any(row.get("agent") is not None for row in rows.values())
    return asked and cfg.agent.get("policy") is not None


def _is_model_given(cfg: DictConfig, overrides: Sequence[str]) -> bool:
    """Whether the command line names the model that plays; then it is shown."""
    how = {f"{node}.{name}" for node in ("model", "agent.policy") for name in LOADING}
    keys = [key for item in overrides if (key := override_key(item)) not in how]
    if not any(key == "model" or key.startswith(("model.", "agent.policy")) for key in keys):
        return False
    place = str(cfg.agent.policy.path)
    trained = (Path(place) / SETTINGS_FILE).is_file()
    log.info("policy: %s, as model= says%s", place, "" if trained else ": not trained here")
    return True


def asks_for_dtype(overrides: Sequence[str]) -> bool:
    """Whether the command line says in which dtype a policy is loaded."""
    return not {"model.dtype", "agent.policy.dtype"}.isdisjoint(map(override_key, overrides))


def _task_of_latest(place: str, training: Path) -> Path | None:
    """The task folder whose latest run is meant, if one is."""
    if place == LATEST:
        return training
    path = Path(place)
    folders = (path.parent / name for name in ("runs", "multiruns"))
    is_link = path.name == LATEST and (path.is_symlink() or any(each.is_dir() for each in folders))
    return path.parent if is_link else None


def _latest_policy(task: Path) -> tuple[Path, str]:
    latest = (task / LATEST).resolve()
    if latest.is_dir():
        if policy_written(latest) is not None and not tunes_simulator(latest):
            return latest, "the latest run"
        if tunes_simulator(latest):
            raise InputError(f"checkpoint={_shown(task / LATEST)}: {_TUNING}")
    run = newest_policy(task)
    if run is None:
        raise InputError(
            f"checkpoint={_shown(task / LATEST)}: no run under {_shown(task)} has a policy yet; "
            "train one (zerosearch train), or name another with checkpoint="
        )
    return run, "the newest run that has a policy; the latest has none"


def _score(run: Path) -> list[str]:
    f1 = read_summary(run).get("test/f1")
    return [f"F1 {f1:.3f}"] if isinstance(f1, float) else []


def _shown(path: Path) -> str:
    """Relative to where the user is, where that is shorter."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
