"""Speed of multi-turn sampling: transformers with and without reuse of KV, and vLLM where it is.

Run:  python benchmarks/bench_generation.py [--device cuda] [--threads 1] [--help]

The defaults are the quickstart's shape: a Llama of 4 layers and width 128, 16 questions x 8
siblings, 3 turns, 100-token observations. The weights are random, so the length of each turn is
drawn from its position instead of from a stop.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zerosearch.core.seeding import derive_random, derive_seed
from zerosearch.generation.generator import CompletionRequest, Generator
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.generation.vllm.generator import VLLMGenerator
from zerosearch.generation.vllm.llm_engine import check_installed


@dataclass(kw_only=True, slots=True, frozen=True)
class Rollout:
    """One measured rollout."""

    seconds: float
    forward_s: float
    forwards: int
    sampled: int
    prefilled: int


def make_policy(args: argparse.Namespace) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A random Llama of the asked shape and a byte tokenizer (most ids decode to nothing)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.width,
        intermediate_size=args.width * 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // args.head_dim,
        num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim,
        max_position_embeddings=8192,
        eos_token_id=None,
        bos_token_id=None,
    )
    dtype = getattr(torch, args.dtype)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(alphabet)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    model = LlamaForCausalLM(config)
    nn.Module.to(model, device=args.device, dtype=dtype)
    return model, PreTrainedTokenizerFast(tokenizer_object=backend)


def inserted_tokens(args: argparse.Namespace, question: int, sibling: int) -> list[list[int]]:
    """A prompt, the same for all siblings, and one observation after each turn."""
    draw, own = derive_random("prompt", question), derive_random("documents", question, sibling)
    prompt = [draw.randrange(args.vocab) for _ in range(draw.randint(60, args.prompt))]
    return [prompt] + [
        [own.randrange(args.vocab) for _ in range(args.observation)] for _ in range(args.turns)
    ]


async def trajectory(
    generator: Generator,
    args: argparse.Namespace,
    inserted: list[list[int]],
    question: int,
    sibling: int,
) -> int:
    """Sample a turn after the prompt and each observation; returns the sampled tokens."""
    ids: list[int] = []
    sampled = 0
    for turn, observation in enumerate(inserted[:-1]):
        ids = ids + observation
        request = CompletionRequest(
            max_new_tokens=derive_random(question, sibling, turn).randint(
                args.turn_tokens // 3, args.turn_tokens
            ),
            seed=derive_seed(question, sibling, turn),
            stop=("</search>", "</answer>"),
        )
        completion = await generator.generate(ids, request)
        sampled += len(completion.token_ids)
        ids = ids + completion.token_ids
    return sampled


def make_generator(args: argparse.Namespace, kind: str) -> Any:
    """A generator by its name in the table."""
    if kind == "vllm":
        return VLLMGenerator(max_model_len=2048, engine_args={"max_num_seqs": args.max_batch})
    return TransformersGenerator(max_batch=args.max_batch, reuse_kv=kind == "transformers")


def measure(args: argparse.Namespace, kind: str) -> Rollout:
    """Time one rollout of all trajectories, after a short one to warm up."""
    model, tokenizer = make_policy(args)
    generator = make_generator(args, kind)
    generator.bind(model, tokenizer)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    seconds, calls = [0.0], [0]
    forward = model.forward

    def timed(*positional, **named):
        start = clock()
        output = forward(*positional, **named)
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds[0] += clock() - start
        calls[0] += 1
        return output

    async def rollout(questions: int) -> int:
        pairs = [(q, s) for q in range(questions) for s in range(args.siblings)]
        return sum(
            await asyncio.gather(
                *(trajectory(generator, args, texts[pair], *pair) for pair in pairs)
            )
        )

    def prefilled() -> int:
        if kind == "vllm":
            return generator.prompt_tokens - generator.cached_tokens
        return generator.prefilled_tokens

    texts = {
        (question, sibling): inserted_tokens(args, question, sibling)
        for question in range(args.questions)
        for sibling in range(args.siblings)
    }
    asyncio.run(generator.sync_weights(model))
    asyncio.run(rollout(1))
    asyncio.run(generator.sync_weights(model))
    model.forward = timed
    before, start = prefilled(), clock()
    sampled = asyncio.run(rollout(args.questions))
    measured = Rollout(
        seconds=clock() - start,
        forward_s=seconds[0],
        forwards=calls[0],
        sampled=sampled,
        prefilled=prefilled() - before,
    )
    if kind == "vllm":
        generator.close()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("questions", 16), ("siblings", 8), ("turns", 3), ("prompt", 100), ("observation", 100),
        ("turn-tokens", 60), ("layers", 4), ("width", 128), ("kv-heads", 2), ("head-dim", 32),
        ("vocab", 1500), ("max-batch", 256), ("threads", 1), ("repeats", 2),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: busy machine"
    )
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kinds = ["transformers", "no reuse", *(["vllm"] if _has_vllm() else [])]
    print("generator     seconds  forward_s  forwards  sampled  tokens/s  prefilled  speed")
    for _ in range(args.repeats):
        first_s = 0.0
        for kind in kinds:
            run = measure(args, kind)
            first_s = first_s or run.seconds
            print(
                f"{kind:12}  {run.seconds:7.2f}  {run.forward_s:9.2f}  {run.forwards:8d}  "
                f"{run.sampled:7d}  {run.sampled / run.seconds:8.0f}  {run.prefilled:9d}  "
                f"{first_s / run.seconds:4.2f}x",
                flush=True,
            )


def _has_vllm() -> bool:
    try:
        check_installed()
    except ValueError as error:
        print(error)
        return False
    return True


if __name__ == "__main__":
    main()
