"""In lockstep the generator sees the same calls in the same order, whatever searches take."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.helpers.generators import ScriptedGenerator
from tests.helpers.models import make_tokenizer
from tests.helpers.training import make_questions
from tests.helpers.waiting import GUARD_S
from zerosearch.core.seeding import derive_random
from zerosearch.generation.generator import Sampling
from zerosearch.rollout.lockstep import Lockstep
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.types import Document, SearchError, SearchRequest, SearchResult


class UnevenEngine:
    """Answers in random order; fails for some questions."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    async def search(self, request: SearchRequest) -> SearchResult:
        await asyncio.sleep(self._random.random() / 50)
        if request.question == "colour 2":
            raise SearchError("http://search.test", "down")
        documents = (Document(text=f"about {request.query}"),)
        return SearchResult(documents=documents, requested=request.top_k)


def write(prompt: str) -> str:
    """Searches up to three times, differently often per prompt."""
    searches = prompt.count("</information>")
    wanted = derive_random(prompt[:40], "searches").randrange(4)
    return f"<search> try {searches} </search>" if searches < wanted else "<answer> red </answer>"


async def prompts_in_order(engine_seed: int, *, lockstep: bool) -> list[list[int]]:
    tokenizer = make_tokenizer()
    generator = ScriptedGenerator(tokenizer, write)
    settings = EpisodeSettings(
        prompt_template="plain",
        max_turns=4,
        top_k=1,
        max_prompt_tokens=300,
        max_turn_tokens=64,
        max_observation_tokens=200,
        max_context_tokens=2000,
    )
    rollouter = Rollouter(generator, tokenizer, settings, lockstep=lockstep)
    await rollouter.rollout(
        make_questions(12),
        UnevenEngine(engine_seed),
        group_size=2,
        noise_probability=0.0,
        seed=0,
        step=0,
        sampling=Sampling(),
    )
    return generator.prompts


async def test_the_order_of_turns_does_not_depend_on_latencies() -> None:
    first, second = [await prompts_in_order(seed, lockstep=True) for seed in (1, 2)]
    assert first == second and len(first) > 24
    free = [await prompts_in_order(seed, lockstep=False) for seed in (1, 2)]
    assert free[0] != free[1], "or this test would prove nothing"
    assert sorted(free[0]) == sorted(first), "the episodes are the same"


async def test_the_gate_waits_for_all_and_lets_them_go_in_order() -> None:
    gate, passed = Lockstep(3), []

    async def player(index: int) -> None:
        await gate.arrive(index)
        passed.append(index)

    tasks = [asyncio.create_task(player(index)) for index in (2, 0)]
    await asyncio.sleep(0.01)
    assert passed == []
    gate.leave()  # the third one has ended
    await asyncio.gather(*tasks)
    assert passed == [0, 2]


async def test_an_error_in_one_episode_ends_the_rollout_of_all() -> None:
    tokenizer = make_tokenizer()

    def broken(prompt: str) -> str:
        if "colour 1" in prompt:
            raise RuntimeError("the sampler broke")
        return "<search> x </search>"

    rollouter = Rollouter(
        ScriptedGenerator(tokenizer, broken),
        tokenizer,
        EpisodeSettings(prompt_template="plain", max_prompt_tokens=300, max_context_tokens=2000),
        lockstep=True,
    )
    with pytest.raises(RuntimeError, match="the sampler broke"):
        await asyncio.wait_for(
            rollouter.rollout(
                make_questions(3),
                UnevenEngine(0),
                group_size=1,
                noise_probability=0.0,
                seed=0,
                step=0,
                sampling=Sampling(),
            ),
            timeout=GUARD_S,
        )
