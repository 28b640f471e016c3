"""The plan as people read it: memory by phase, seconds by stage, and what would change them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from zerosearch.planning.memory_table import GIB, PHASES, MemoryRow, total
from zerosearch.planning.run import PlannedRun
from zerosearch.planning.time import StepTimes, times_of, variants


def print_memory(plan: PlannedRun, rows: list[MemoryRow], gpu_bytes: int) -> None:
    """GiB of each row and phase."""
    parameters = list(plan.model.parameters())
    every = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    kind = "processes" if plan.on_cpu else "GPUs"
    on = f"on each of {plan.gpus} {kind}" if plan.gpus > 1 else "on the GPU"
    on = "in the process" if plan.on_cpu and plan.gpus == 1 else on
    table = _table("", *PHASES)
    for row in rows:
        sizes = [getattr(row, phase) for phase in PHASES]
        if any(sizes):
            table.add_row(row.name, *(f"{size / GIB:.2f}" if size else "" for size in sizes))
    table.add_row("sum", *(f"{total(rows, phase) / GIB:.2f}" for phase in PHASES))
    table.add_row("of", *(f"{gpu_bytes / GIB:.2f}" for _ in PHASES))
    print(
        f"GiB {on}; {every:,} parameters, {trained:,} trained, in micro-batches of "
        f"{plan.tokens_per_micro_batch:,} tokens"
    )
    Console(width=120).print(table)


def print_times(times: StepTimes, card: str, top_k: int) -> None:
    """Seconds of each stage, then the run as configured and otherwise."""
    work, episode = times.work, times.work.episode
    print(
        f"\nseconds of a policy step on {card}: {work.episodes} episodes of {episode.tokens:.0f} "
        f"tokens, {episode.sampled:.0f} of them sampled, with {episode.searches:g} searches"
    )
    table = _table("", "seconds", "share")
    for name, seconds in _stages(times).items():
        table.add_row(name, f"{seconds:.1f}", f"{seconds / times.step:.0%}")
    overlapped = sum(_stages(times).values()) - times.step
    if overlapped > 0.05:
        table.add_row("at the same time", f"-{overlapped:.1f}", f"-{overlapped / times.step:.0%}")
    table.add_row("step", f"{times.step:.1f}", "")
    Console(width=120).print(table)
    engine = work.search.engine
    if engine is not None:
        print(
            f"simulator: {times.searches_s:.0f} searches or {times.searches_s * top_k:.0f} "
            f"documents a second while it is asked; {work.search.read:.0f} tokens read and "
            f"{work.search.written:.0f} written for each search, on {engine.gpus:g} "
            f"GPU{'' if engine.gpus == 1 else 's'}"
        )
    print()
    table = _table("", "step", "hours", "GPU hours", "simulator's", "GPUs idle")
    for name, other in variants(work).items():
        found = times_of(other)
        gpus = {what: number for what, (number, _) in found.idle.items()}
        apart = gpus.pop("simulate", 0)
        idle = ", ".join(f"{what} {share:.0%}" for what, (_, share) in found.idle.items())
        table.add_row(
            name,
            f"{found.step:.1f}",
            f"{found.hours:.1f}",
            f"{sum(gpus.values()) * found.hours:.0f}",
            f"{apart * found.hours:.0f}" if apart else "",
            idle,
        )
    Console(width=120).print(table)


def _stages(times: StepTimes) -> dict[str, float]:
    return {
        "rollout: sampling": times.rollout.sampling,
        "rollout: searches": times.rollout.searching,
        "reference": times.reference,
        "update": times.update,
        "sync": times.sync,
        "validation and tests": times.validation.total,
        "checkpoint": times.checkpoint,
    }


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table
