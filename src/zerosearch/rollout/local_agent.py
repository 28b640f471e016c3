"""An agent that is a model of this process.

Training needs token ids and samples with the `Rollouter` itself. Here an episode is all that is
wanted, from one question at a time; episodes under way together share the generator's batches.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import Any

from zerosearch.generation.generator import Generator, Sampling
from zerosearch.generation.loading import load_to_sample
from zerosearch.policy.source import PolicySource
from zerosearch.reward.answer import extract_answer
from zerosearch.rollout.agent import OnText, PlayedEpisode
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.rollout.saved_episode import warn_of_other_episode
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.search.engine import SearchEngine
from zerosearch.types import Question


class LocalAgent:
    """A model of this process, loaded when first needed.

    Args:
        policy: the model.
        generator: samples from it.
        episode: the shape of an episode.
        sampling: how tokens are drawn.
        device: "auto" takes a GPU where there is one.
    """

    def __init__(
        self,
        policy: PolicySource,
        generator: Generator,
        episode: EpisodeSettings,
        sampling: Sampling | None = None,
        device: str = "auto",
    ) -> None:
        self.policy = policy
        self.generator = generator
        self.episode = episode
        self.sampling = sampling or Sampling()
        self._device = device
        self._rollouter: Rollouter | None = None
        self._loading = asyncio.Lock()

    async def play(
        self,
        question: Question,
        engine: SearchEngine,
        *,
        seed: int,
        attempt: int,
        on_text: OnText | None = None,
    ) -> PlayedEpisode:
        """See `Agent`."""
        rollouter = await self._loaded()
        [trajectory] = await rollouter.rollout(
            [question],
            engine,
            group_size=1,
            noise_probability=0.0,
            seed=seed,
            step=attempt,
            sampling=self.sampling,
            on_text=on_text,
        )
        return PlayedEpisode(
            trajectory=trajectory,
            answer=extract_answer(trajectory.final_text),
            texts=tuple(turn.text for turn in trajectory.turns),
        )

    async def check(self) -> None:
        """Load the model; InputError where it cannot be had. Other episodes than those of its
        training are warned of.
        """
        warn_of_other_episode(self.policy, self.episode)
        await self._loaded()

    def settings(self) -> dict[str, Any]:
        """See `Agent`."""
        sampling = self.sampling
        return {
            "model": self._fingerprint,
            "chat": self.policy.chat,
            "episode": self.episode.as_dict(),
            "sampling": [sampling.temperature, sampling.top_p, sampling.top_k],
        }

    @cached_property
    def _fingerprint(self) -> str:
        return self.policy.fingerprint()

    async def _loaded(self) -> Rollouter:
        if self._rollouter is not None:
            return self._rollouter
        async with self._loading:  # the first of many episodes loads
            if self._rollouter is None:
                tokenizer = await load_to_sample(self.policy, self.generator, self._device)
                self._rollouter = Rollouter(
                    self.generator, tokenizer, self.episode, chat=self.policy.chat
                )
            return self._rollouter
