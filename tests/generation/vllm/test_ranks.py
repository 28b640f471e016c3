"""An engine beside every rank of a policy that FSDP2 shards, and a server for all of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard

from tests.helpers.devices import everywhere
from tests.helpers.models import make_tokenizer
from tests.helpers.openai_server import free_port
from tests.helpers.policies import forward_logprobs, generate_greedily, greedy, run
from tests.helpers.vllm import CONTEXT, PROMPTS, make_policy, serving
from zerosearch.generation.vllm.generator import VLLMGenerator
from zerosearch.generation.vllm.server_generator import VLLMServerGenerator

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
RANKS = 2


def shard(model: Any) -> nn.Module:
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    return model


def sample_as_rank(rank: int, port: int, folder: str, engine: int | str, device: str) -> None:
    """Sync twice, the weights changed between, and answer this rank's own prompts each time.

    Args:
        rank: of this process.
        port: where the ranks meet.
        folder: takes what is sampled.
        engine: ranks that share one, or the endpoint of a server.
        device: of the ranks.
    """
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TRITON_F32_DEFAULT"] = "ieee"  # else vLLM's float32 attention computes in TF32
    model: Any = make_policy()
    if device == "cuda":
        torch.cuda.set_device(rank)
        torch.set_float32_matmul_precision("highest")
        model.to(torch.device("cuda", rank))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=RANKS)
    shard(model)
    generator: Any = (
        VLLMServerGenerator(endpoints=[engine])
        if isinstance(engine, str)
        else VLLMGenerator(
            max_model_len=CONTEXT, tensor_parallel_size=engine, gpu_memory_utilization=0.1
        )
    )
    generator.bind(model, make_tokenizer())
    sampled = []
    for _ in range(2):
        run(generator.sync_weights(model))
        completions = run(*(generator.generate(p, greedy(12)) for p in PROMPTS[rank::RANKS]))
        run(generator.release())
        sampled.append([(c.token_ids, c.logprobs, c.weight_version) for c in completions])
        dist.barrier()  # a server has one policy
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
    torch.save(sampled, Path(folder) / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # vLLM's threads outlive the process group


def check_samples(folder: Path, engine: int | str, device: str) -> None:
    arguments = (free_port(), str(folder), engine, device)
    try:
        mp.spawn(sample_as_rank, args=arguments, nprocs=RANKS)  # pyright: ignore
    finally:
        # shared memory of engines on CPUs, under one name for all: the next one would not start
        for left in Path("/dev/shm").glob("-tp:0-[[]0-1[]]-cpushm_*"):
            left.unlink()
    model: Any = make_policy()
    for step in range(2):
        for rank in range(RANKS):
            sampled = torch.load(folder / f"{rank}.pt")[step]
            for prompt, (ids, logprobs, version) in zip(PROMPTS[rank::RANKS], sampled, strict=True):
                assert ids == generate_greedily(model, prompt, 12)
                assert logprobs == pytest.approx(forward_logprobs(model, prompt, ids), abs=1e-3)
                assert version == step + 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)


@pytest.mark.parametrize("device", everywhere(gpus=RANKS))  # over NCCL, and over gloo
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_sharded_weights_reach_the_engine_of_every_rank(
    tmp_path: Path, tensor_parallel_size: int, device: str
) -> None:
    check_samples(tmp_path, tensor_parallel_size, device)


@pytest.mark.slow
def test_sharded_weights_reach_a_server(tmp_path: Path) -> None:
    """All ranks gather, the first one sends, all ask."""
    with serving(tmp_path) as endpoint:
        check_samples(tmp_path, endpoint, "cpu")
