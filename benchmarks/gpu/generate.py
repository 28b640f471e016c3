"""Sampled tokens a second of transformers and vLLM, seconds and bytes of a sync, peak memory.

Run:  python benchmarks/gpu/generate.py --size 1.5b [--rows 256] [--new 128] [--help]
      python benchmarks/gpu/generate.py --size tiny --device cpu --without-vllm

The weights are random and no text ends a completion, so that every row has --new tokens. A sync is
that of vLLM in this process. Each measurement is a line "RESULT" with JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from zerosearch.core.seeding import derive_random
from zerosearch.generation.generator import CompletionRequest, Generator
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.generation.vllm.generator import VLLMGenerator
from zerosearch.generation.vllm.llm_engine import check_installed
from zerosearch.policy.sharding import compute_buffers
from zerosearch.policy.source import PolicySource

GIB = 2**30
TINY = {
    "model_type": "qwen2",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # heads of 32 numbers: vLLM's CPU kernels take no smaller ones
    "num_key_value_heads": 1,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SIZES = ("tiny", "0.5b", "1.5b", "3b", "7b")


def architecture(size: str) -> dict[str, Any]:
    """Fields of the configuration of Qwen2.5 of this size; run from the project's root."""
    if size == "tiny":
        return TINY
    file = Path("configs/model") / f"qwen2_5_{size.replace('.', '_')}.yaml"
    return yaml.safe_load(file.read_text())["architecture"]


def make_policy(args: argparse.Namespace) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """A random policy and a byte tokenizer (most ids decode to nothing)."""
    source = PolicySource(path="none", random_init=True, architecture=architecture(args.size))
    # as the weights of a copy that samples, and not as those that are trained
    model = source.build_on_meta().to(getattr(torch, args.dtype)).to_empty(device=args.device)
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    compute_buffers(model)  # type: ignore[arg-type]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(alphabet)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    return model.eval(), PreTrainedTokenizerFast(tokenizer_object=backend)


async def rollout(generator: Generator, args: argparse.Namespace, words: int) -> int:
    """Sample a completion for every row; returns the sampled tokens."""

    async def row(number: int) -> int:
        draw = derive_random("prompt", number)
        prompt = [draw.randrange(words) for _ in range(args.prompt)]
        done = await generator.generate(
            prompt, CompletionRequest(max_new_tokens=args.new, seed=number)
        )
        return len(done.token_ids)

    return sum(await asyncio.gather(*map(row, range(args.rows))))


def measure(
    args: argparse.Namespace, name: str, generator: Any, model: nn.Module, tokenizer: Any
) -> None:
    """Print what syncs and a rollout take, after one of each that builds and warms up."""

    def sync_s() -> float:
        started = time.perf_counter()
        asyncio.run(generator.sync_weights(model))
        if args.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    words: int = model.config.vocab_size  # type: ignore[assignment,union-attr]
    generator.bind(model, tokenizer)
    first_s = sync_s()
    asyncio.run(rollout(generator, args, words))
    syncs_s = [sync_s() for _ in range(args.repeats)]
    started = time.perf_counter()
    sampled = asyncio.run(rollout(generator, args, words))
    seconds = time.perf_counter() - started
    shape = f"{args.rows} rows, {args.prompt} + {args.new} tokens"
    result("rollout", args, f"{name}, {shape}", tokens_per_s=round(sampled / seconds))
    if generator.own_weights:
        sent = sum(each.numel() * each.element_size() for each in model.parameters())
        result(
            "sync",
            args,
            name,
            first_s=round(first_s, 1),
            sync_s=round(statistics.median(syncs_s), 3),
            sync_gib=round(sent / GIB, 3),
        )


def result(what: str, args: argparse.Namespace, how: str, **found: float) -> None:
    peak = torch.cuda.max_memory_allocated() / GIB if args.device == "cuda" else None
    found |= {} if peak is None else {"peak_gib": round(peak, 1)}
    print(
        "RESULT " + json.dumps({"what": what, "size": args.size, "how": how, **found}), flush=True
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("place", nargs="?", choices=("cpu", "cuda"), help="the same as --device")
    parser.add_argument("--size", choices=SIZES, default=None, help="cuda: 3b; cpu: tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtype", default=None, help="of weights (cuda: bfloat16; cpu: float32)")
    parser.add_argument("--without-vllm", action="store_true")
    for name, default, meaning in (
        ("rows", 256, "completions"),
        ("prompt", 300, "tokens of a prompt"),
        ("new", 128, "sampled tokens of a completion"),
        ("repeats", 3, "measured syncs"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    args = parser.parse_args(argv)
    args.device = args.place or args.device
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU is visible here; --size tiny --device cpu tries this script out")
    args.size = args.size or ("3b" if args.device == "cuda" else "tiny")
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    model, tokenizer = make_policy(args)
    measure(args, "transformers", TransformersGenerator(max_batch=args.rows), model, tokenizer)
    if args.without_vllm:
        return
    try:
        check_installed()
    except ValueError as error:
        print(error)
        return
    generator = VLLMGenerator(
        max_model_len=args.prompt + args.new, gpu_memory_utilization=0.5, sleep_while_training=False
    )
    try:
        measure(args, "vllm", generator, model, tokenizer)
    finally:
        generator.close()


if __name__ == "__main__":
    main()
