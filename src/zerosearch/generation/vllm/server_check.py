"""Whether a vLLM server was made for the policy that is to send it weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from zerosearch.core.errors import InputError
from zerosearch.generation.vllm.client import START, VLLMServer
from zerosearch.generation.vllm.llm_engine import VERSIONS
from zerosearch.policy.architecture import SIZE_FIELDS


@dataclass(kw_only=True, slots=True, frozen=True)
class Needs:
    """What a policy asks of its servers."""

    config: PretrainedConfig  # of the policy
    tokenizer: PreTrainedTokenizerBase  # that makes the prompts
    context_tokens: int = 1  # that one episode may take
    dtype: torch.dtype | None = None  # None: unknown before the policy is loaded


@dataclass(kw_only=True, slots=True, frozen=True)
class Served:
    """What a server says of itself."""

    model: str  # the name by which it is asked for
    context: int  # tokens of prompt and completion
    workers: list[dict[str, Any]]  # see `VLLMServer.workers`


async def inspect(server: VLLMServer, needs: Needs) -> Served:
    """Compare a server with what a policy needs; nothing of it is changed.

    Raises:
        CallFailure: it cannot be reached, or was started without the routes that a sync takes.
        InputError: it was not made for this policy; names the endpoint and the remedy.
    """
    model = (await server.models())[0]
    served = Served(
        model=model["id"],
        context=model["max_model_len"],
        workers=await server.workers(SIZE_FIELDS),
    )
    check_workers(server.url, served.workers, needs)
    probe = probe_text(needs.tokenizer)
    expected = needs.tokenizer.encode(probe, add_special_tokens=False)
    if await server.tokenize(served.model, probe) != expected:
        raise InputError(
            f"{server.url}: its tokenizer is not the policy's, or has other special tokens; {START}"
        )
    if served.context < needs.context_tokens:
        raise InputError(
            f"{server.url}: its context of {served.context} tokens is less than "
            f"episode.max_context_tokens={needs.context_tokens}; {START} (of the same episode=), "
            "or lower episode.max_context_tokens"
        )
    return served


def check_workers(url: str, workers: list[dict[str, Any]], needs: Needs) -> None:
    """Raise where a server's workers cannot take the policy's weights.

    Args:
        url: of the server.
        workers: see `VLLMServer.workers`.
        needs: of the policy whose weights are to be sent.
    """
    if sorted(worker["rank"] for worker in workers) != list(range(len(workers))):
        raise InputError(
            f"{url}: it runs with data parallelism; start one server for each part and name them "
            "all in generator.endpoints"
        )
    config = needs.config.get_text_config()
    for worker in workers:
        if worker["vllm"] not in VERSIONS:
            raise InputError(f"{url}: it runs vLLM {worker['vllm']}, but {VERSIONS} is needed")
        for name, served in worker["sizes"].items():
            if (own := getattr(config, name, None)) != served:
                raise InputError(
                    f"{url}: it serves a model with {name}={served}, the policy has {own}; {START}"
                )
        if needs.dtype not in (None, getattr(torch, worker["dtype"])):
            own = str(needs.dtype).removeprefix("torch.")
            raise InputError(
                f"{url}: it computes in {worker['dtype']}, the policy in {own}; start it with "
                f"server.dtype={own}, or set generator.dtype={worker['dtype']} if that is meant"
            )


def probe_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """A text that tokenizers with different vocabularies or special tokens read differently."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(0, len(tokenizer), 97)))
    words = tokenizer.convert_tokens_to_string([piece for piece in pieces if piece is not None])
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    return " ".join([words.replace("\ufffd", ""), *added])
