"""What a GPU has to hold, as a table: a row for each thing, a column for each phase of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zerosearch.core.errors import InputError

GIB = 2**30
PHASES = ("sync", "sampling", "training", "validation")


@dataclass(kw_only=True, slots=True, frozen=True)
class MemoryRow:
    """Bytes of one kind on one GPU by phase, and what would lower them."""

    name: str
    sync: int = 0
    sampling: int = 0
    training: int = 0
    validation: int = 0
    remedy: str = ""
    whole: bool = False  # taken in one piece, so that fragmentation costs nothing


def always(name: str, size: int, remedy: str = "", *, whole: bool = False) -> MemoryRow:
    """A row that is the same in all phases."""
    return MemoryRow(
        name=name,
        sync=size,
        sampling=size,
        training=size,
        validation=size,
        remedy=remedy,
        whole=whole,
    )


def total(rows: Iterable[MemoryRow], phase: str) -> int:
    """Bytes of one phase."""
    return sum(getattr(row, phase) for row in rows)


def check_fits(rows: list[MemoryRow], gpu_bytes: int, *, on_cpu: bool = False) -> None:
    """Raise where a phase needs more than there is.

    Args:
        rows: see `zerosearch.planning.memory.memory_rows`.
        gpu_bytes: memory of the GPU, or what a process on a CPU may take.
        on_cpu: which of the two.

    Raises:
        InputError: names the phase, its largest parts and what lowers them.
    """
    for phase in PHASES:
        needed = total(rows, phase)
        if needed <= gpu_bytes:
            continue
        largest = sorted(rows, key=lambda row: getattr(row, phase), reverse=True)[:3]
        parts = ", ".join(f"{row.name} {getattr(row, phase) / GIB:.1f}" for row in largest)
        remedies = dict.fromkeys(row.remedy for row in largest if row.remedy)
        raise InputError(
            f"not enough {'' if on_cpu else 'GPU '}memory: {phase} needs {needed / GIB:.1f} GiB "
            f"per {'process' if on_cpu else 'GPU'}, which has {gpu_bytes / GIB:.1f} "
            f"(largest: {parts}); {'; or '.join(remedies)}"
        )
