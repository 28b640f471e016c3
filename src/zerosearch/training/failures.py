"""Why a run ends before its last step, with nothing lost that is worth keeping."""

from __future__ import annotations

from collections.abc import Sequence

from zerosearch.core.distributed import gather_objects
from zerosearch.core.errors import RunError
from zerosearch.types import Trajectory

RESUME = "go on with resume=<run folder>"


class SearchOutage(RunError):
    """Too many trajectories were lost to failed searches.

    Raised on all ranks alike, before a step has changed anything or when an evaluation has reported
    its numbers: what was there after the last whole step can be saved.
    """


class TrainingCollapse(RunError):
    """The policy is no longer worth training; raised on all ranks alike, between two steps."""


def find_outage(
    trajectories: Sequence[Trajectory], max_failed_share: float, *, whose: str, remedy: str
) -> SearchOutage | None:
    """The error to raise where searches failed too often on all ranks together (invariant 4).

    Args:
        trajectories: of this rank; a collective.
        max_failed_share: of all ranks' trajectories.
        whose: names the trajectories in the error, which also shows the endpoint and the reason of
            one failure, of whichever rank has one.
        remedy: what to do when the engine answers again.

    Returns:
        The same on all ranks; None where no more than the share failed.
    """
    errors = [t.error for t in trajectories if t.error is not None]
    ranks = gather_objects((len(trajectories), len(errors), errors[:1]))
    total = sum(count for count, _, _ in ranks)
    failed = sum(count for _, count, _ in ranks)
    if failed <= max_failed_share * total:
        return None
    example = next(shown[0] for _, _, shown in ranks if shown)
    return SearchOutage(
        f"{failed} of {total} trajectories of {whose} ({failed / total:.1%}) were lost to failed "
        f"searches, more than module.max_failed_share={max_failed_share}; one of them: {example}. "
        f"Fix that, then {remedy}"
    )
