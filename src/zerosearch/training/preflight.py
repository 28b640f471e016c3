"""Checks that cost seconds, made before anything costs GPU time."""

from __future__ import annotations

import asyncio

import torch

from zerosearch.core.errors import InputError
from zerosearch.generation.generator import PolicyCheckable
from zerosearch.rollout.saved_episode import warn_of_other_episode
from zerosearch.search.engine import Checkable
from zerosearch.training.module import SearchPolicyModule


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
    warn_of_other_episode(module.policy_source, module.episode)
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


async def _check_servers(module: SearchPolicyModule) -> None:
    """Of whatever kind: those that sample and those that are searched."""
    if isinstance(module.generator, PolicyCheckable):
        await module.generator.check_policy(
            module.policy_source, context_tokens=module.episode.max_context_tokens
        )
    for engine in [module.search, *(entry.search for entry in module.evaluations.values())]:
        if isinstance(engine, Checkable):
            await engine.check()
