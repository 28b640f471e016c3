"""A policy step shared by two processes is the step of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from tests.helpers.openai_server import free_port
from tests.helpers.training_ranks import BUDGET, RANKS, run_rank, train_rank
from zerosearch.training.batching import split_micro_batches

MEASURED = ("time/", "throughput/", "memory/", "search/latency_s")


def test_invariant_06_and_09_two_ranks_make_the_step_of_one(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(free_port(), str(tmp_path)), nprocs=RANKS)  # pyright: ignore
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    alone = train_rank(1)

    own = [len(split_micro_batches(rank["lengths"], BUDGET)) for rank in ranks]
    assert own[0] > own[1] >= 2, "the ranks have unequal work"
    assert [rank["backward_passes"] for rank in ranks] == [own[0]] * 2
    assert ranks[0]["failed"] == 0 and ranks[1]["failed"] > 0

    for name, tensor in alone["weights"].items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name]), name
        torch.testing.assert_close(ranks[0]["weights"][name], tensor, rtol=0, atol=1e-6)
    assert ranks[0]["metrics"].keys() == alone["metrics"].keys()
    for name, value in alone["metrics"].items():
        if not name.startswith(MEASURED):
            for rank in ranks:
                assert rank["metrics"][name] == pytest.approx(value, abs=1e-5), name
    assert alone["metrics"]["optimizer/gradient_norm"] > 1e-2
