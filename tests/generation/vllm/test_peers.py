"""How training processes are divided among engines."""

from __future__ import annotations

import pytest

from zerosearch.generation.vllm.peers import Peers


def test_a_process_of_its_own_hears_itself() -> None:
    peers = Peers(1)
    assert peers.rank == 0 and peers.exchange({"a": 1}) == [{"a": 1}]


def test_processes_that_cannot_be_divided() -> None:
    with pytest.raises(
        ValueError, match=r"tensor_parallel_size=2 does not divide the number .*, 1: give a divisor"
    ):
        Peers(2)
