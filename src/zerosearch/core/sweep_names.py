"""Names of sweeps and of their jobs: folders that say what differs, whenever they are made.

Light on imports, as `zerosearch.core.runs`.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zerosearch.core.run_names import run_name

OF_THE_MACHINE = ("threads=", "paths.")  # words that say nothing of a method
_VALUE, _NAME = 40, 160  # characters; a name of a folder has at most 255 bytes
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=-]+")


def swept_keys(words: Iterable[str], params: Mapping[str, Any]) -> list[str]:
    """The keys that a sweep goes over, in their order.

    Args:
        words: of its command line, without those of Hydra.
        params: of its sweeper, by `hparams_search=` for example; words win.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [*(f"{key}={value}" for key, value in params.items()), *words]
    is_swept: dict[str, bool] = {}
    for override in OverridesParser.create().parse_overrides(given):
        is_swept[override.get_key_element()] = override.is_sweep_override()
    return [key for key, swept in is_swept.items() if swept]


def in_order(keys: Iterable[str]) -> list[str]:
    """The keys of a name, whatever their order on a command line: seeds last."""
    return sorted(keys, key=lambda key: (key == "seed", key))


def job_name(differs: Mapping[str, str]) -> str:
    """Name of a job's folder, such as `simulator=scripted_good,seed=1`.

    It is fit for every file system, for TensorBoard and for a shell. A value that is not, or that
    is long, is shortened to its end, which tells paths apart, and to a digest of all of it.

    Args:
        differs: values of the keys that the sweep goes over; not empty.
    """
    name = ",".join(f"{_safe(key)}={_safe(differs[key])}" for key in in_order(differs))
    if len(name) <= _NAME:
        return name
    return f"{name[: _NAME - 9]}-{_digest(name, 8)}"


def sweep_name(*, _root_: DictConfig) -> str:
    """Name of a sweep's folder: its keys, and a digest of its words.

    The same command therefore has the same folder, where it goes on. A search for the best settings
    that would draw other ones is a new sweep each time.

    Args:
        _root_: the configuration of the sweep.
    """
    hydra = _root_.hydra
    params = sweeper_params(hydra.sweeper)
    known = ("sampler.seed", "storage")  # of Optuna's: with either the same are drawn again
    draws = OmegaConf.select(hydra.sweeper, "sampler") is not None
    if draws and all(OmegaConf.select(hydra.sweeper, name) is None for name in known):
        return _of_now()
    words = [word for word in hydra.overrides.task if not word.startswith(OF_THE_MACHINE)]
    searched = [f"{key}={value}" for key, value in params.items()]
    name = "+".join(map(_safe, in_order(swept_keys(words, params)))) or "one"
    said = "\n".join([hydra.sweeper["_target_"], *sorted(words), *sorted(searched)])
    return f"{name[: _NAME // 2]}-{_digest(said, 6)}"


def sweeper_params(sweeper: DictConfig) -> dict[str, Any]:
    """Overrides that a sweeper has of its own, by key."""
    found = OmegaConf.select(sweeper, "params")
    params = OmegaConf.to_container(found, resolve=True) if found else {}
    assert isinstance(params, dict)
    return {str(key): value for key, value in params.items()}


def names_apart(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that came before: jobs that differ in nothing."""
    return [
        name if name not in names[:place] else f"{name},{names[:place].count(name) + 1}"
        for place, name in enumerate(names)
    ]


def _safe(text: str) -> str:
    bare = text.strip("'\"")
    safe = _UNSAFE.sub("_", bare).strip("_")
    if safe == bare and 0 < len(safe) <= _VALUE and safe.strip("."):
        return safe
    return "-".join(part for part in (safe[-(_VALUE - 7) :].strip("._-"), _digest(text, 6)) if part)


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


_of_now = functools.cache(run_name)


def register() -> None:
    """Let configurations write `${sweep_name:}`."""
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
