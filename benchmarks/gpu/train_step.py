"""Tokens a second, MFU and peak memory of the training step, with random weights.

Run:  python benchmarks/gpu/train_step.py --size 1.5b [--attn sdpa] [--compile 1] [--help]
      python benchmarks/gpu/train_step.py --size tiny --device cpu

The model is built, sharded and trained as under trainer=fsdp with one process: float32 weights,
gradients and AdamW, computed in bfloat16 on a GPU. The last line is "RESULT" and JSON. MFU counts
what the loss needs, HFU also what gradient checkpointing computes again (see
`zerosearch.policy.flops`); both are of forward and backward pass, without the optimizer's update.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from zerosearch.algorithms.advantages import reinforce
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.core.seeding import derive_random
from zerosearch.planning.speeds import card_named
from zerosearch.policy.activation_memory import Shape
from zerosearch.policy.attention import use_training_attention
from zerosearch.policy.flops import step_flops
from zerosearch.policy.logprobs import packs_sequences
from zerosearch.policy.sharding import Sharding, compute_buffers, local_tensor, shard_model
from zerosearch.policy.source import PolicySource
from zerosearch.training.batching import collate
from zerosearch.training.micro_batches import MicroBatches
from zerosearch.training.update import PolicyUpdater
from zerosearch.types import Question, Trajectory

GIB = 2**30
TINY = {
    "model_type": "qwen2",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SPEEDS = Path("configs/speeds/published.yaml")
SIZES = ("tiny", "0.5b", "1.5b", "3b", "7b")
QUESTION = Question(uid="q", text="?", golden_answers=("x",))


def architecture(size: str) -> dict[str, Any]:
    """Fields of the configuration of Qwen2.5 of this size; run from the project's root."""
    if size == "tiny":
        return TINY
    file = Path("configs/model") / f"qwen2_5_{size.replace('.', '_')}.yaml"
    return yaml.safe_load(file.read_text())["architecture"]


def make_model(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """A random policy, sharded over this one process, with the attention asked for."""
    source = PolicySource(
        path="none",
        random_init=True,
        architecture=architecture(args.size),
        attn_implementation=args.attn,
        gradient_checkpointing=bool(args.ckpt),
        compile=bool(args.compile),
    )
    source.check()
    model = source.build_on_meta()
    mesh = init_device_mesh(device.type, (1,))
    shard_model(model, Sharding(mesh=mesh, device=device, param_dtype=getattr(torch, args.dtype)))
    with torch.no_grad():
        for parameter in model.parameters():
            local_tensor(parameter).normal_(0.0, 0.02)
    compute_buffers(model)  # type: ignore[arg-type]
    use_training_attention(args.attn, (model,), device)
    return model.train()


def make_trajectory(args: argparse.Namespace, number: int, words: int) -> Trajectory:
    """An episode of random tokens; of each 512 after the prompt the first 160 are sampled."""
    draw = derive_random("trajectory", number)
    total = draw.randint(args.tokens // 4, args.tokens) if args.var else args.tokens
    prompt = min(256, total // 4)
    sampled = [place % 512 < 160 for place in range(total - prompt)]
    return Trajectory(
        question=QUESTION,
        group=0,
        sibling=number,
        prompt_ids=[draw.randrange(words) for _ in range(prompt)],
        response_ids=[draw.randrange(words) for _ in sampled],
        sampled=sampled,
        logprobs=[-1.0] * len(sampled),
    )


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device has done the work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The best of some steps, after one that compiles and fills caches."""
    model = make_model(args, device)
    config: Any = model.config
    batch = collate(
        [make_trajectory(args, n, config.vocab_size) for n in range(args.traj)], pad_id=0
    )
    batch.advantages = batch.sampled_mask.float()
    lengths, predicted = batch.attention_mask.sum(1).tolist(), int(batch.sampled_mask.sum())
    updater = PolicyUpdater(
        algorithm=Algorithm(group_size=1, kl_coefficient=0.0, advantage=reinforce),
        micro_batches=MicroBatches(
            tokens=args.budget, device=device, packed=packs_sequences(model)
        ),
        chunk_tokens=args.chunk,
        temperature=1.0,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    attention = str(config._attn_implementation)
    print(f"built {args.size} with {attention}, {sum(lengths)} tokens", flush=True)

    def passes() -> None:
        updater.accumulate(model, batch, lambda loss: loss.backward())

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    times = []
    for _ in range(args.steps + 1):
        times.append((seconds_of(passes, device), seconds_of(update, device)))
        print(f"passes {times[-1][0]:.2f} s, update {times[-1][1]:.2f} s", flush=True)
    passes_s, update_s = (min(each) for each in zip(*times[1:], strict=True))
    logprob_s = seconds_of(lambda: updater.logprobs(model, batch), device)
    shape, found = Shape(config), {}
    on_gpu = device.type == "cuda"
    if (peak := peak_of(device)) is not None:
        for name, again in (("mfu", False), ("hfu", bool(args.ckpt))):
            flops = step_flops(shape, lengths, predicted, recomputed=again)
            found[name] = round(flops / passes_s / peak, 3)
    return {
        "what": "training step",
        "size": args.size,
        "how": how(args, attention),
        "tokens": sum(lengths),
        "tokens_per_s": round(sum(lengths) / passes_s),
        **found,
        "passes_s": round(passes_s, 4),
        "update_s": round(update_s, 3),
        "logprob_s": round(logprob_s, 3),
        "first_s": round(times[0][0], 1),
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / GIB, 1) if on_gpu else None,
    }


def peak_of(device: torch.device) -> float | None:
    """Operations a second of a card of `configs/speeds`; None where they are not known."""
    if device.type != "cuda":
        return None
    cards = yaml.safe_load(SPEEDS.read_text())["cards"]
    card = card_named(torch.cuda.get_device_name(device), cards)
    return float(cards[card]["flop_s"]) if card else None


def how(args: argparse.Namespace, attention: str) -> str:
    """The settings in words."""
    words = [attention]
    words += ["layers compiled"] if args.compile else []
    words += [] if args.ckpt else ["no checkpointing"]
    return ", ".join(words)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("place", nargs="?", choices=SIZES, help="the same as --size")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--dtype", default=None, help="of the computation (cuda: bfloat16; cpu: float32)"
    )
    parser.add_argument("--attn", default="auto", help="as model.attn_implementation (auto)")
    for name, default, meaning in (
        ("tokens", 4096, "of the longest trajectory"),
        ("traj", 16, "trajectories"),
        ("budget", 16384, "most tokens of a micro-batch"),
        ("chunk", 4096, "rows of logits held at a time"),
        ("steps", 2, "measured steps"),
        ("ckpt", 1, "1: gradient checkpointing"),
        ("compile", 0, "1: layers compiled"),
        ("var", 0, "1: lengths vary from a quarter of --tokens to all of them"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU is visible here; --size tiny --device cpu tries this script out")
    args.size = args.place or args.size
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device(args.device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        print("RESULT " + json.dumps(measure(args, device)), flush=True)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
