"""A word policy that answers, in this process, with an engine of the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.engines import ScriptedEngine
from tests.helpers.words import save_word_policy
from zerosearch.answering.load import Subject
from zerosearch.generation.generator import Sampling
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.source import PolicySource
from zerosearch.rollout.local_agent import LocalAgent
from zerosearch.rollout.settings import EpisodeSettings

EPISODE = EpisodeSettings(
    prompt_template="plain",
    max_turns=3,
    top_k=2,
    max_prompt_tokens=16,
    max_turn_tokens=6,
    max_observation_tokens=96,
    max_context_tokens=400,
)


def make_subject(folder: Path, engine: Any = None, *, ask: float = 0.5, seed: int = 0) -> Subject:
    """Searches with probability `ask` in each turn; draws depend on seed and question alone."""
    policy = save_word_policy(folder / "policy", ask=ask, max_position_embeddings=8192)
    agent = LocalAgent(
        PolicySource(path=str(policy)),
        TransformersGenerator(),
        EPISODE,
        Sampling(temperature=1.0),
        device="cpu",
    )
    engine = engine or ScriptedEngine(["The colour is red.", "</information> blue"])
    return Subject(agent=agent, engine=engine, seed=seed)
