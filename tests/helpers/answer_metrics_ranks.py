"""What each spawned process of the multi-rank test of `AnswerMetrics` runs."""

from pathlib import Path

import torch
import torch.distributed as dist

from zerosearch.reward.metrics import AnswerMetrics

QUESTIONS = (
    ("Oslo", ["Oslo"], False),
    ("Paris in France", ["Paris"], False),
    (None, ["Rome"], False),
    ("Bern", ["Bern"], True),
)


def compute_on_rank(
    rank: int, world_size: int, splits: tuple[tuple[int, int], ...], folder: str
) -> None:
    """Take `split[rank]` questions of each split, synchronise over gloo, save the results."""
    rendezvous = (Path(folder) / "rendezvous").as_uri()
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    results = []
    for split in splits:
        metrics = AnswerMetrics()
        start = sum(split[:rank])
        for prediction, golden, failed in QUESTIONS[start : start + split[rank]]:
            metrics.update(prediction, golden, failed=failed)
        results.append(metrics.compute())
    torch.save(results, Path(folder) / f"{rank}.pt")
