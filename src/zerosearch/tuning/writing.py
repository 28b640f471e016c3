"""What a simulator in training writes to held-out prompts, and how well it plays its part."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from zerosearch.core.distributed import gather_objects
from zerosearch.core.seeding import derive_seed
from zerosearch.generation.generator import CompletionRequest, Generator, Sampling
from zerosearch.simulator.fidelity import fidelity_of, measure_search
from zerosearch.simulator.replies import parse_reply
from zerosearch.tuning.tuning_set import TuningExample
from zerosearch.types import SearchResult

# Of `fidelity_of`; the rest is about servers.
SHOWN = (
    "answer_in_useful",
    "answer_in_noisy",
    "answer_documents_useful",
    "answer_documents_noisy",
    "incomplete",
    "duplicates",
    "words",
)


@dataclass(kw_only=True, slots=True, frozen=True)
class Written:
    """One prompt and what was written to it."""

    example: TuningExample
    text: str
    result: SearchResult


async def write_replies(
    generator: Generator,
    prompts: Sequence[tuple[TuningExample, list[int]]],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> list[Written]:
    """Write to every prompt, all at once.

    Args:
        generator: bound to the simulator.
        prompts: examples with their prompts' token ids.
        max_tokens: of a reply.
        temperature: 0 is greedy.
        seed: of the draws, together with the prompt.
    """

    async def write(example: TuningExample, prompt_ids: list[int]) -> Written:
        drawn = derive_seed(seed, "tuning", example.messages[-1]["content"])
        request = CompletionRequest(
            max_new_tokens=max_tokens, seed=drawn, sampling=Sampling(temperature=temperature)
        )
        completion = await generator.generate(prompt_ids, request)
        ending = "length" if completion.stop_reason == "length" else "stop"
        reply = parse_reply(completion.text, example.documents, ending)
        result = SearchResult(
            documents=reply.documents,
            requested=example.documents,
            noisy=example.noisy,
            problems=reply.problems,
        )
        return Written(example=example, text=completion.text, result=result)

    return await asyncio.gather(*(write(example, ids) for example, ids in prompts))


def fidelity_metrics(written: Sequence[Written]) -> dict[str, float]:
    """`SHOWN` metrics of `fidelity_of` over all ranks, as far as there are any; a collective."""
    own = [measure_search(each.result, each.example.golden_answers) for each in written]
    every = [each for part in gather_objects(own) for each in part]
    found = fidelity_of(every)
    return {name: found[name] for name in SHOWN if name in found}
