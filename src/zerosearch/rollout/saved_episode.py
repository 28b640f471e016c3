"""The episodes of a policy that was trained before, as its folder describes them.

The folder may come from anybody. What it says are values with checked types; of the prompt the
text counts, and no file that it names is read. Its texts do not pass through a configuration, in
which `${...}` would be looked up: the configuration names the folder, and they are read here.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.core.model_path import resolve_path
from zerosearch.core.plain import from_plain
from zerosearch.core.runs import SETTINGS_FILE
from zerosearch.policy.export import load_settings
from zerosearch.policy.source import PolicySource
from zerosearch.rollout.settings import SHIPPED, EpisodeSettings

_TEXTS = ("prompt_template", "prompt_text", "invalid_hint")

log = logging.getLogger(__name__)


def saved_episode(saved_in: str, **given: Any) -> EpisodeSettings:
    """The episodes of the policy in a folder.

    Args:
        saved_in: the folder.
        given: settings in place of the saved ones.

    Raises:
        InputError: the folder's file describes no episodes.
    """
    settings = load_settings(saved_in)
    place = f"{saved_in}/{SETTINGS_FILE}: episode"
    if not isinstance(saved := settings.get("episode"), dict):
        raise InputError(f"{saved_in} is no policy of a training run: its settings name no episode")
    if saved.get("prompt_text") is None:
        name = saved.get("prompt_template")
        if not isinstance(name, str) or name not in {path.stem for path in SHIPPED.glob("*.j2")}:
            raise InputError(
                f"{place}.prompt_template is {name!r}, and prompt_text, which has the prompt "
                "itself, is missing: a file that a policy's settings name is not read"
            )
    episode = from_plain(EpisodeSettings, {"prompt_template": "saved", **saved}, place)
    if "prompt_template" in given:
        given = {"prompt_text": None, **given}
    return dataclasses.replace(episode, **given)


def warn_of_other_episode(policy: PolicySource, episode: EpisodeSettings) -> None:
    """Say where a policy that was trained here before, or had a cold start, had other episodes, or
    other prompts; of what was not saved nothing is said.
    """
    folder = Path(resolve_path(policy.path))
    if not (folder / SETTINGS_FILE).is_file():
        return
    settings = load_settings(folder)
    saved, chat = settings.get("episode"), settings.get("chat")
    try:
        if isinstance(saved, dict):
            episode.check_same(saved)
    except InputError as error:
        log.warning("model.path=%s: %s", folder, error)
    if isinstance(chat, bool) and chat != policy.chat:
        log.warning(
            "model.path=%s: model.chat is %s but the policy was trained with %s: "
            "give model.chat=%s, or train it anew on such prompts",
            folder,
            policy.chat,
            chat,
            str(chat).lower(),
        )


def node_of(folder: str | Path, given: dict[str, Any]) -> dict[str, Any]:
    """The node of a configuration that stands for `saved_episode`.

    Args:
        folder: of the policy.
        given: settings in place of the saved ones.

    Returns:
        The folder, and the settings that are no texts, so that other nodes can refer to them.
    """
    shape = dataclasses.asdict(saved_episode(str(folder)))
    shape = {name: value for name, value in shape.items() if name not in _TEXTS}
    target = f"{saved_episode.__module__}.{saved_episode.__name__}"
    return {"_target_": target, "saved_in": str(folder), **shape, **given}
