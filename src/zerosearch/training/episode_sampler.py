"""The episodes of policy steps, played with the policy as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from zerosearch.core.distributed import rank, world_size
from zerosearch.generation.generator import Generator, Sampling
from zerosearch.reward.rubric import Rubric
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.search.engine import SearchEngine
from zerosearch.training.resampling import PlayedGroups, play_groups
from zerosearch.training.rollout_plan import RolloutPlan
from zerosearch.types import Question, Trajectory


@dataclass(kw_only=True, slots=True)
class EpisodeSampler:
    """Gives the generator the weights of the policy, and plays this rank's episodes with them."""

    policy: Callable[[], nn.Module]  # once it is loaded
    rollouter: Callable[[], Rollouter]  # over it
    generator: Generator
    search: SearchEngine
    rubric: Rubric  # tells groups that teach nothing, where they are replaced
    sampling: Sampling
    group_size: int
    resampling_rounds: int
    seed: int

    async def sync(self) -> int:
        """Give the generator the present weights; returns their version."""
        self.rollouter()  # binds the generator
        await self.generator.sync_weights(self.policy())
        return self.generator.weight_version

    async def sample(self, plan: RolloutPlan) -> PlayedGroups:
        """Play the episodes of a plan."""

        async def play(questions: Sequence[Question], first_group: int) -> list[Trajectory]:
            return await self.rollouter().rollout(
                questions,
                self.search,
                group_size=self.group_size,
                noise_probability=plan.noise_probability,
                seed=self.seed,
                step=plan.step,
                sampling=self.sampling,
                first_group=first_group,
            )

        played = await play_groups(
            play,
            plan,
            self.rubric,
            rounds=self.resampling_rounds,
            rank=rank(),
            world_size=world_size(),
        )
        await self.generator.release()
        return played
