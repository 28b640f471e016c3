"""Checks that cost seconds, made before anything costs GPU time."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import torch

from zerosearch.core.errors import InputError
from zerosearch.core.model_path import resolve_path
from zerosearch.core.runs import SETTINGS_FILE
from zerosearch.generation.generator import PolicyCheckable
from zerosearch.policy.export import load_settings
from zerosearch.search.engine import Checkable
from zerosearch.training.module import SearchPolicyModule

log = logging.getLogger(__name__)


def check_accelerator(name: str) -> None:
    """Raise where a GPU is asked for and none is there."""
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(
            f"trainer.accelerator={name}, but no CUDA GPU is visible here: use trainer=cpu or "
            "trainer=auto, or start the run on a machine with a GPU"
        )


def check_run(module: SearchPolicyModule) -> None:
    """Check the policy's weights, the generator and every search engine.

    Raises:
        InputError: says which field is wrong and how to fix it.
    """
    module.policy_source.check()
    check_context(module)
    _warn_of_other_episode(module)
    asyncio.run(_check_servers(module))


def check_context(module: SearchPolicyModule) -> None:
    """Raise where an episode may grow longer than the policy's context."""
    config = module.policy_source.load_config().get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and module.episode.max_context_tokens > limit:
        raise InputError(
            f"episode.max_context_tokens={module.episode.max_context_tokens}, but the policy "
            f"{module.policy_source.path} has a context of {limit} tokens: lower it"
        )


def _warn_of_other_episode(module: SearchPolicyModule) -> None:
    """Say where a policy that was trained here before, or had a cold start, had other episodes, or
    other prompts; of what was not saved nothing is said.
    """
    folder = Path(resolve_path(module.policy_source.path))
    if not (folder / SETTINGS_FILE).is_file():
        return
    settings = load_settings(folder)
    saved, chat = settings.get("episode"), settings.get("chat")
    try:
        if isinstance(saved, dict):
            module.episode.check_same(saved)
    except InputError as error:
        log.warning("model.path=%s: %s", folder, error)
    if isinstance(chat, bool) and chat != module.policy_source.chat:
        log.warning(
            "model.path=%s: model.chat is %s but the policy was trained with %s: "
            "give model.chat=%s, or train it anew on such prompts",
            folder,
            module.policy_source.chat,
            chat,
            str(chat).lower(),
        )


async def _check_servers(module: SearchPolicyModule) -> None:
    """Of whatever kind: those that sample and those that are searched."""
    if isinstance(module.generator, PolicyCheckable):
        await module.generator.check_policy(
            module.policy_source, context_tokens=module.episode.max_context_tokens
        )
    for engine in [module.search, *(entry.search for entry in module.evaluations.values())]:
        if isinstance(engine, Checkable):
            await engine.check()
