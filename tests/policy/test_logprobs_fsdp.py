"""The chunked forward under FSDP2: it bypasses the root's own forward, yet the root is sharded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.helpers.models import make_model
from zerosearch.policy.logprobs import token_logprobs


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention, selection, [2, 10]; row 1 is padded."""
    ids = torch.randint(0, 250, (2, 10), generator=torch.Generator().manual_seed(2))
    attention = torch.ones(2, 10, dtype=torch.bool)
    attention[1, 7:] = False
    select = attention.clone()
    select[:, :3] = False
    return ids, attention, select


def shard(model: nn.Module) -> nn.Module:
    for layer in model.model.layers:  # type: ignore[union-attr]
        fully_shard(layer)
    fully_shard(model)
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gradient = parameter.grad
        found[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return found


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("tied", [False, True])
def test_sharded_equals_plain_for_several_steps(tied: bool) -> None:
    plain = make_model(1, scale=3.0, tie_word_embeddings=tied)
    sharded = shard(make_model(1, scale=3.0, tie_word_embeddings=tied))
    batch = make_batch()
    for _ in range(2):
        results = []
        for model in (plain, sharded):
            model.zero_grad()
            stats = token_logprobs(model, *batch, chunk_tokens=4)
            (stats.logprobs.sum() + stats.entropy.sum()).backward()
            results.append((stats.logprobs.detach(), gradients(model)))
        torch.testing.assert_close(results[1][0], results[0][0])
        assert results[1][1].keys() == results[0][1].keys()
        for name, gradient in results[1][1].items():
            torch.testing.assert_close(gradient, results[0][1][name], rtol=1e-5, atol=1e-5)


def run_rank(rank: int, folder: str) -> None:
    """Rank 0 has all the data, rank 1 selects nothing; gradients are averaged over ranks."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = shard(make_model(1, scale=3.0))
    ids, attention, select = make_batch()
    if rank == 1:
        select = torch.zeros_like(select)
    stats = token_logprobs(model, ids, attention, select, chunk_tokens=4)
    stats.logprobs.sum().backward()
    full = gradients(model)
    if rank == 0:
        torch.save(full, f"{folder}/gradients.pt")
    dist.barrier()  # gloo may abort where a rank leaves while another one still sends
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_rank_without_data_does_not_hang_two_ranks(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    actual = torch.load(tmp_path / "gradients.pt")
    model = make_model(1, scale=3.0)
    token_logprobs(model, *make_batch()).logprobs.sum().backward()
    for name, expected in gradients(model).items():
        torch.testing.assert_close(2 * actual[name], expected, rtol=1e-5, atol=1e-5)
