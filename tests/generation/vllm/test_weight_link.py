"""Weights pass from one process group to another, one tensor at a time."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.helpers.openai_server import free_port
from zerosearch.generation.vllm import worker as vllm_worker
from zerosearch.generation.vllm.weight_link import (
    WeightLink,
    hosted_store,
    joined_store,
    own_address,
)
from zerosearch.generation.vllm.worker import PolicyWeights

TIMEOUT_S = 60.0
WEIGHTS = {
    "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "strided": torch.arange(6.0).reshape(2, 3).T,
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def ends() -> tuple[WeightLink, list[WeightLink]]:
    """The policy's end and those of two workers, each in a thread while they connect."""
    address = own_address("127.0.0.1", 80)
    store, port = hosted_store(address, TIMEOUT_S)

    def connect(rank: int) -> WeightLink:
        return WeightLink(
            store if rank == 0 else joined_store(address, port, TIMEOUT_S),
            rank=rank,
            size=3,
            device=torch.device("cpu"),
            address=address,
            timeout_s=TIMEOUT_S,
        )

    with ThreadPoolExecutor(3) as threads:
        policy, *workers = threads.map(connect, range(3))
    return policy, workers


def test_every_worker_gets_every_weight_in_order(ends: Any) -> None:
    policy, workers = ends
    for factor in (1, 2):  # a second sync over the same connection
        with ThreadPoolExecutor(2) as threads:
            received = [threads.submit(lambda w=worker: list(w.receive())) for worker in workers]
            for name, tensor in WEIGHTS.items():
                policy.send(name, tensor * factor)
            policy.finish()
        for each in received:
            assert [name for name, _ in each.result()] == list(WEIGHTS)
            for name, tensor in each.result():
                wanted = WEIGHTS[name] * factor
                assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted)


def test_the_store_listens_at_one_address_only() -> None:
    _store, port = hosted_store("127.0.0.1", TIMEOUT_S)
    with socket.create_connection(("127.0.0.1", port), timeout=30):
        pass
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=30)


def test_a_worker_that_reaches_the_policy_and_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _store, port = hosted_store("127.0.0.1", TIMEOUT_S)
    PolicyWeights().reach_policy("127.0.0.1", port)
    monkeypatch.setattr(vllm_worker, "_REACH_TIMEOUT_S", 1.0)
    with pytest.raises(RuntimeError):
        PolicyWeights().reach_policy("127.0.0.1", free_port())
