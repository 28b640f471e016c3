"""When lost searches end a run: an infrastructure event, with nothing of the run lost."""

from __future__ import annotations

from collections.abc import Sequence

from zerosearch.training.distributed import gather_objects
from zerosearch.types import Trajectory


class SearchOutage(RuntimeError):
    """Too many trajectories were lost to failed searches.

    Raised on all ranks alike, before the step has changed anything: what was there after the step
    before can be saved.
    """


def check_failures(trajectories: Sequence[Trajectory], max_failed_share: float) -> None:
    """Stop the run when searches fail too often on all ranks together (invariant 4).

    Args:
        trajectories: of this rank; a collective.
        max_failed_share: of all ranks' trajectories.

    Raises:
        SearchOutage: with the endpoint and the reason of one failure, of whichever rank has one.
    """
    errors = [t.error for t in trajectories if t.error is not None]
    ranks = gather_objects((len(trajectories), len(errors), errors[:1]))
    total = sum(count for count, _, _ in ranks)
    failed = sum(count for _, count, _ in ranks)
    if failed <= max_failed_share * total:
        return
    example = next(shown[0] for _, _, shown in ranks if shown)
    raise SearchOutage(
        f"{failed} of this step's {total} trajectories were lost to failed searches, more than "
        f"module.max_failed_share={max_failed_share}; one of them: {example}. Mend "
        "that, then go on with resume=<run folder>"
    )
