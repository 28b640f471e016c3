"""Dynamic sampling: groups that teach nothing are replaced by groups of other questions.

A group is flat where all its valid rewards are equal: whatever compares siblings gives each of them
the advantage 0. DAPO samples until the batch is full of others (arXiv 2503.14476, section 3.2).
Here a step has a bound, after which the batch is filled up with flat groups. Every rank replaces
its own groups from its own spare questions: there is no collective, since sampling may run beside
those of training.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import attrgetter

from zerosearch.core.errors import InputError
from zerosearch.reward.rubric import Rubric
from zerosearch.training.rollout_plan import RolloutPlan
from zerosearch.types import Question, Trajectory

Group = list[Trajectory]  # siblings
Play = Callable[[Sequence[Question], int], Awaitable[list[Trajectory]]]


@dataclass(kw_only=True, slots=True, frozen=True)
class PlayedGroups:
    """What this rank sampled for a step, siblings next to each other."""

    kept: list[Trajectory]  # as many groups as the step has questions
    dropped: list[Trajectory] = field(default_factory=list)  # flat groups that were replaced
    rounds: int | None = None  # of replacing groups; None: groups are not replaced


async def play_groups(
    play: Play, plan: RolloutPlan, rubric: Rubric, *, rounds: int, rank: int, world_size: int
) -> PlayedGroups:
    """Play the questions of a plan, and spare ones in place of flat groups.

    Args:
        play: from questions and the number of the first one's group to their trajectories.
        plan: of this rank.
        rubric: scores the trajectories.
        rounds: the bound: how many times, at most, all flat groups are replaced; 0 is off.
        rank: of this process.
        world_size: number of processes, each with equally many questions.

    Returns:
        Groups that are not flat in the order in which they were played, then flat ones.

    Raises:
        InputError: there are too few spares; nothing was sampled yet.
    """
    wanted = len(plan.questions)
    if len(plan.spares) < rounds * wanted:
        raise InputError(
            f"algorithm.resampling_rounds={rounds} asks up to {rounds * wanted} other questions, "
            f"and the data module hands out {len(plan.spares)} as QuestionBatch.spares: let it "
            "draw as many, as QADataModule does, or set algorithm.resampling_rounds=0"
        )
    first_group = rank * wanted
    trajectories = await play(plan.questions, first_group)
    if rounds == 0:
        return PlayedGroups(kept=trajectories)
    kept, flat = _sort(trajectories, rubric)
    spares, done = iter(plan.spares), 0
    while done < rounds and len(kept) < wanted:
        done += 1
        first_group += wanted * world_size  # beyond those of all ranks in the round before
        trajectories = await play([*islice(spares, wanted - len(kept))], first_group)
        more_kept, more_flat = _sort(trajectories, rubric)
        kept, flat = kept + more_kept, flat + more_flat
    filling = wanted - len(kept)
    return PlayedGroups(
        kept=_joined(kept + flat[:filling]), dropped=_joined(flat[filling:]), rounds=done
    )


def is_flat(group: Sequence[Trajectory], rubric: Rubric) -> bool:
    """Whether siblings teach nothing: their valid rewards are equal, or there is none.

    A single valid one is not flat: it lost its siblings to failed searches, and replacing its group
    would only cost more searches.
    """
    scores = [rubric.score(trajectory) for trajectory in group if trajectory.valid]
    rewards = [score.total for score in scores if score is not None]
    return len(rewards) != 1 and len(set(rewards)) <= 1


def _sort(trajectories: Sequence[Trajectory], rubric: Rubric) -> tuple[list[Group], list[Group]]:
    """Groups to keep, and flat ones."""
    kept: list[Group] = []
    flat: list[Group] = []
    for _, siblings in groupby(trajectories, key=attrgetter("group")):
        group = [*siblings]
        (flat if is_flat(group, rubric) else kept).append(group)
    return kept, flat


def _joined(groups: Sequence[Group]) -> list[Trajectory]:
    return [trajectory for group in groups for trajectory in group]
