"""Tokens a second of the training step by how trajectories share a pass, and balance of ranks.

Run:  python benchmarks/bench_training.py [--device cuda --attention flex_attention] [--help]

Lengths are those of search episodes: a prompt, then one to five turns with documents between them.
"in order" fills each padded micro-batch with trajectories as they come, "sorted" with those of
similar length, "packed" reads them as one row without padding. Packing pays with flash or flex
attention; "sdpa", the default on a CPU, computes attention between the sequences as well, only to
mask it. On a CPU seconds are processor time of one thread, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from zerosearch.algorithms.advantages import reinforce
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.core.seeding import derive_random
from zerosearch.policy.flex_attention import FLEX_ATTENTION
from zerosearch.training import micro_batches
from zerosearch.training.balance import partition
from zerosearch.training.batching import collate, split_micro_batches
from zerosearch.training.micro_batches import MicroBatches
from zerosearch.training.update import PolicyUpdater
from zerosearch.types import PolicyBatch, Question, Trajectory

SIBLINGS = 5  # next to each other; a hard question makes all of them long
QUESTION = Question(uid="q", text="?", golden_answers=("x",))
Split = Callable[[Sequence[int], int], list[list[int]]]


def make_trajectory(args: argparse.Namespace, number: int) -> Trajectory:
    """An episode of random tokens; about a quarter of them is sampled."""
    draw = derive_random("trajectory", number)
    prompt, turn, documents = args.tokens // 16, args.tokens // 32, args.tokens // 8
    sampled: list[bool] = []
    hardness = derive_random("question", number // SIBLINGS).choice((0, 0, 1, 1, 2, 3))
    for number_of_turn in range(hardness + draw.choice((1, 1, 2))):
        if number_of_turn:
            sampled += [False] * draw.randint(documents // 2, documents)
        sampled += [True] * max(1, int(turn * draw.lognormvariate(0.0, 0.6)))
    return Trajectory(
        question=QUESTION,
        group=0,
        sibling=0,
        prompt_ids=[draw.randrange(args.vocab) for _ in range(draw.randint(prompt, 2 * prompt))],
        response_ids=[draw.randrange(args.vocab) for _ in sampled],
        sampled=sampled,
        logprobs=[-1.0] * len(sampled),
    )


def in_order(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Padded micro-batches of trajectories as they come."""
    groups: list[list[int]] = []
    width = 0
    for index, length in enumerate(lengths):
        width = max(width, length)
        if groups and (len(groups[-1]) + 1) * width <= token_budget:
            groups[-1].append(index)
        else:
            groups.append([index])
            width = length
    return groups


def seconds_of(
    args: argparse.Namespace, model: nn.Module, batch: PolicyBatch, split: Split, *, packed: bool
) -> tuple[float, int]:
    """Seconds of all forward and backward passes of one update, and their number."""
    device = torch.device(args.device)
    updater = PolicyUpdater(
        algorithm=Algorithm(group_size=1, kl_coefficient=0.0, advantage=reinforce),
        micro_batches=MicroBatches(tokens=args.budget, device=device, packed=packed),
        chunk_tokens=4096,
        temperature=1.0,
    )
    passes = [0]

    def backward(loss: torch.Tensor) -> None:
        passes[0] += 1
        loss.backward()

    micro_batches.split_micro_batches = split
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    best = math.inf
    for _ in range(args.repeats):
        passes[0] = 0
        model.zero_grad()
        started = clock()
        updater.accumulate(model, batch, backward)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - started)
    return best, passes[0]


def compare_passes(args: argparse.Namespace, trajectories: list[Trajectory]) -> None:
    """Print the training step's tokens a second for each way of sharing a pass."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.width,
        intermediate_size=3 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32,
        num_key_value_heads=args.width // 64,
        head_dim=32,
        max_position_embeddings=8192,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(
        FLEX_ATTENTION if args.attention == "flex_attention" else args.attention
    )
    nn.Module.to(model, device=args.device, dtype=getattr(torch, args.dtype))
    batch = collate(trajectories, pad_id=0)
    batch.advantages = batch.sampled_mask.float()
    tokens = int(batch.attention_mask.sum())
    print(
        f"{len(trajectories)} trajectories, {tokens} tokens, {args.budget} a pass, "
        f"{args.device}, {args.attention}"
    )
    print("passes     seconds  tokens/s  against in order")
    reference = 0.0
    for name, split, packed in (
        ("in order", in_order, False),
        ("sorted", split_micro_batches, False),
        ("packed", split_micro_batches, True),
    ):
        seconds, passes = seconds_of(args, model, batch, split, packed=packed)
        reference = reference or seconds
        print(
            f"{name:9} {passes:3d} {seconds:6.2f}  {tokens / seconds:8.0f}  "
            f"{reference / seconds:7.2f}x"
        )


def compare_ranks(args: argparse.Namespace, trajectories: list[Trajectory]) -> None:
    """Print the busiest rank's load against the mean, as sampled and as balanced."""
    lengths = [len(t.prompt_ids) + len(t.response_ids) for t in trajectories]
    print("ranks  tokens of the busiest / mean: as sampled  balanced  faster by")
    for ranks in (2, 4, 8, 16):
        share = len(lengths) // ranks
        sampled = [sum(lengths[rank * share : (rank + 1) * share]) for rank in range(ranks)]
        balanced = [sum(lengths[i] for i in part) for part in partition(lengths, ranks)]
        mean = sum(lengths) / ranks
        before, after = max(sampled) / mean, max(balanced) / mean
        print(f"{ranks:5d}  {before:41.3f}  {after:8.3f}  {before / after:8.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("trajectories", 64), ("tokens", 800), ("budget", 4096), ("layers", 4), ("width", 128),
        ("vocab", 1500), ("repeats", 2),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", default="sdpa")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    compare_passes(args, [make_trajectory(args, n) for n in range(args.trajectories)])
    compare_ranks(args, [make_trajectory(args, n) for n in range(320)])


if __name__ == "__main__":
    main()
