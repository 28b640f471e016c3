"""Memory of a rank against 1/N of the model's, and seconds of a step, of a save and of a load.

Run:  python benchmarks/bench_sharding.py [--ranks 1 2 4] [--layers 8 --vocab 4096] [--help]

Each number of ranks trains a random model under `trainer=fsdp`, as processes of one thread on CPUs
that talk by gloo. The default shape is that of SmolLM2-135M. The tokens of a step are shared out
over the ranks. Memory is what the rank that holds most keeps between two steps: 1.00 is exactly
1/N. Saving ends when the checkpoint is on the disk.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from zerosearch.callbacks.policy_checkpoint import save_whole
from zerosearch.policy.loading import load_policy
from zerosearch.policy.logprobs import token_logprobs
from zerosearch.policy.source import PolicySource
from zerosearch.training.sharded_strategy import FullyShardedStrategy, sharding_of

PARTS = ("parameters", "gradients", "optimizer")
STATES = (1, 1, 2)  # tensors of the size of each parameter: itself, its gradient, Adam's two
SEQUENCES = 8  # of a step, over all ranks


class ShardedModel(LightningModule):
    """Updates a random model on random tokens."""

    def __init__(self, source: PolicySource) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.source = source
        self.model: Any = None
        self.step_s: list[float] = []

    def configure_model(self) -> None:
        if self.model is None:
            self.model = load_policy(self.source, sharding_of(self))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-5)

    def training_step(self, ids: Tensor, _: int) -> None:
        started = time.perf_counter()
        whole = torch.ones_like(ids, dtype=torch.bool)
        sampled = whole.clone()
        sampled[:, 0] = False
        optimizer = cast(Any, self.optimizers())
        optimizer.zero_grad()
        self.manual_backward(-token_logprobs(self.model, ids, whole, sampled).logprobs.mean())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        self.step_s.append(time.perf_counter() - started)

    def bytes_held(self) -> Tensor:
        """Bytes of this rank [3], in the order of `PARTS`."""
        optimizer = cast(Any, self.optimizers())
        parameters = list(self.model.parameters())
        states = [state for each in optimizer.state.values() for state in each.values()]
        held = [parameters, [p.grad for p in parameters], [s for s in states if s.ndim]]
        return torch.tensor([local_bytes(tensors) for tensors in held])


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of this rank's shards."""
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in local)


def make_source(args: argparse.Namespace) -> PolicySource:
    """A random Llama of the asked shape, with one matrix for embeddings and head."""
    architecture = {
        "model_type": "llama",
        "vocab_size": args.vocab,
        "hidden_size": args.width,
        "intermediate_size": args.width * 8 // 3,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.width // 64,
        "num_key_value_heads": args.kv_heads,
        "tie_word_embeddings": True,
    }
    return PolicySource(path=".", architecture=architecture, random_init=True)


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds until every rank has done `work`."""
    dist.barrier()
    started = time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - started


def measure(rank: int, ranks: int, port: int, folder: str, args: argparse.Namespace) -> None:
    """Train, save and load as one of the ranks; rank 0 prints the row of the table."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    module = ShardedModel(make_source(args))
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=FullyShardedStrategy(param_dtype="float32"),
        plugins=[LightningEnvironment()],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    draw = torch.Generator().manual_seed(rank)
    share = SEQUENCES // ranks
    sequences = share * (args.repeats + 1), args.tokens // SEQUENCES
    ids = torch.randint(args.vocab, sequences, generator=draw)
    trainer.fit(module, DataLoader(cast(Any, ids), batch_size=share))
    held = module.bytes_held()
    dist.all_reduce(held, dist.ReduceOp.MAX)
    path = Path(folder) / f"{ranks}.ckpt"
    save_s = seconds_of(lambda: save_whole(trainer, path))
    load_s = seconds_of(lambda: trainer.strategy.load_checkpoint(path))
    if rank == 0:
        whole = 4 * sum(p.numel() for p in module.model.parameters())
        shares = [held[n] * ranks / (STATES[n] * whole) for n in range(len(PARTS))]
        step_s = statistics.median(module.step_s[1:])
        print(
            f"{ranks:5d}  {held.sum() / 2**20:7.1f}  "
            + "  ".join(
                f"{share:{len(part)}.3f}" for part, share in zip(PARTS, shares, strict=True)
            )
            + f"  {step_s:6.2f}  {save_s:6.2f}  {save_s / step_s:10.2f}  {load_s:6.2f}",
            flush=True,
        )
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("layers", 30), ("width", 576), ("kv-heads", 3), ("vocab", 49152), ("tokens", 1024),
        ("repeats", 3),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], choices=[1, 2, 4, 8])
    args = parser.parse_args()
    parameters = sum(p.numel() for p in make_source(args).build_on_meta().parameters())
    print(f"{parameters:,} parameters in float32, {args.tokens} tokens a step; memory against 1/N")
    print(f"ranks  MiB_all  {'  '.join(PARTS)}  step_s  save_s  save/steps  load_s", flush=True)
    for ranks in args.ranks:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(measure, (ranks, free_port(), folder, args), ranks)


if __name__ == "__main__":
    main()
