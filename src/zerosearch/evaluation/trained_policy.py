"""A trained policy by one path: its weights, and the episodes it was trained on with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from zerosearch.command_line.chosen_policy import LOADING, asks_for_dtype
from zerosearch.core.errors import InputError
from zerosearch.core.model_path import PACKAGE, resolve_path
from zerosearch.core.plain import check_plain
from zerosearch.core.ranges import Dtype
from zerosearch.core.runs import EXPORT, LAST_CHECKPOINT, SETTINGS_FILE, is_checkpoint
from zerosearch.policy.conversion import convert
from zerosearch.policy.export import load_settings
from zerosearch.rollout.saved_episode import node_of, saved_episode

_SHIPPED = f"{PACKAGE}zerosearch/"  # the quickstart's policy
_LOADED_AS: dict[str, Any] = {"chat": bool, "dtype": Dtype}  # what an export says of its policy

log = logging.getLogger(__name__)


def use_checkpoint(cfg: DictConfig, overrides: Sequence[str], scratch: Path) -> None:
    """Let the agent play the policy of `checkpoint`, on its own episodes.

    Changes `agent.policy`, `agent.episode` and `episode`; `model` stays what it is. The policy is
    loaded in the dtype that its run computed in, or else that of its files.

    Args:
        cfg: with `checkpoint`, `agent`, `episode` and `allow_other_episode`.
        overrides: of the command line; settings of the episode given there must be those of the
            policy's training, unless `allow_other_episode`; a dtype given there wins.
        scratch: takes the weights of a checkpoint that was not exported yet.

    Raises:
        InputError: there is no such checkpoint, or the episode asked for is another.
    """
    OmegaConf.set_struct(cfg, False)
    folder = None if cfg.checkpoint is None else find_policy(str(cfg.checkpoint), scratch)
    policy = cfg.agent.get("policy")  # None: a server has the weights
    if policy is not None and folder is not None:
        kept = {name: policy[name] for name in LOADING if name in policy}
        if not asks_for_dtype(overrides):
            kept["dtype"] = "auto"  # that of its files
        source = {"_target_": policy._target_, "_convert_": "all", "path": folder, **kept}
        policy = OmegaConf.create({**source, "chat": policy.get("chat", False)})
        cfg.agent.policy = policy
    if policy is not None and folder is None:
        folder = resolve_path(str(policy.path))
    if folder is None or not (Path(folder) / SETTINGS_FILE).is_file():
        _check_own_episode(cfg, policy)
        return
    saved = load_settings(folder)
    _set_episode(cfg, folder, overrides)
    if policy is not None:
        own = {name: saved[name] for name in _LOADED_AS if name in saved}
        for name, value in own.items():
            check_plain(_LOADED_AS[name], value, f"{folder}/{SETTINGS_FILE}: {name}")
        if asks_for_dtype(overrides):
            own.pop("dtype", None)
        cfg.agent.policy = OmegaConf.merge(policy, own)


def _check_own_episode(cfg: DictConfig, policy: Any) -> None:
    """Refuse the quickstart's short episodes for a policy that brings none, unless it is its own.

    Raises:
        InputError: says which episode to choose.
    """
    made_for = (cfg.get("made_for") or {}).get("episode")
    asked = "methods" not in cfg or any(each.get("agent") for each in cfg["methods"].values())
    if made_for is None or not asked or (policy is not None and policy.path.startswith(_SHIPPED)):
        return
    chat = policy is None
    name = f"agent.client.model={cfg.agent.client.model}" if chat else f"model.path={policy.path}"
    if cfg.checkpoint is not None:
        name = f"checkpoint={cfg.checkpoint}"
    raise InputError(
        f"{name} is no policy of a training run here and so brings no episodes, and "
        f"episode=quickstart, the default, is made for model={made_for.model}: use "
        f"{made_for.otherwise}; made_for.episode=null takes it as it is"
    )


def find_policy(place: str, scratch: Path) -> str:
    """Folder (or hub name) of a model, from a run folder, an export, a checkpoint or a model.

    Raises:
        InputError: a checkpoint is damaged or lies outside its run folder.
    """
    path = Path(place)
    last = path / LAST_CHECKPOINT
    if (path / EXPORT / SETTINGS_FILE).is_file() and not _went_on(path):
        return str(path / EXPORT)
    if (path / SETTINGS_FILE).is_file():
        return str(path)
    if is_checkpoint(last):
        path = last
    if not is_checkpoint(path):
        return place
    target = scratch / EXPORT
    if not (target / SETTINGS_FILE).is_file():
        convert(path, target)
    return str(target)


def _went_on(run: Path) -> bool:
    """Whether a run was resumed after its export and has not ended again."""
    last = run / LAST_CHECKPOINT
    saved = last / "meta.pt" if last.is_dir() else last
    exported = run / EXPORT / SETTINGS_FILE  # written last, and after the last checkpoint
    return saved.is_file() and saved.stat().st_mtime_ns > exported.stat().st_mtime_ns


def _set_episode(cfg: DictConfig, folder: str, overrides: Sequence[str]) -> None:
    """Make `episode` the saved one, with what the command line says on top.

    Raises:
        InputError: that is another episode than the policy's, and nobody allowed it.
    """
    given = {item.partition("=")[0].lstrip("+~") for item in overrides}
    saved = saved_episode(folder)
    asked: Any = OmegaConf.to_container(cfg.episode, resolve=False)  # as it is written there
    if "episode" not in given:
        asked = node_of(folder, {n: v for n, v in asked.items() if f"episode.{n}" in given})
    cfg.episode = asked
    try:
        instantiate(cfg.episode).check_same(saved.as_dict())
    except InputError as error:
        if not cfg.allow_other_episode:
            raise InputError(f"{error}; allow_other_episode=true goes on all the same") from error
        log.warning("%s", error)
    cfg.agent.episode = cfg.episode
