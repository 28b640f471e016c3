"""Hostile replies of every kind to all clients: each fails that call, and only that.

The clients of searches play whole episodes, so that what a reply holds would be seen in a
trajectory; of a vLLM server, each completion is read as the generator reads it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from scripts.attack.tally import Tally
from tests.helpers.generators import ScriptedGenerator
from tests.helpers.hostile_replies import CLIENTS, HOSTILE, STREAMS, further
from tests.helpers.models import make_tokenizer
from tests.helpers.raw_server import RawServer
from zerosearch.clients.endpoints import CallFailure
from zerosearch.core.errors import InputError
from zerosearch.generation.generator import Sampling
from zerosearch.generation.vllm.client import VLLMServer, sampled_of
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.types import Question, Trajectory

LONGEST_PAUSE_S = 1.0  # of the event loop, beside a busy machine's
EPISODE = EpisodeSettings(
    prompt_template="plain",
    max_turns=2,
    top_k=1,
    search_timeout_s=3.0,
    max_prompt_tokens=200,
    max_turn_tokens=64,
    max_observation_tokens=300,
    max_context_tokens=1200,
)
LIVE = ("\x1b", "\x9b", "\u202e")  # of what replies hold


def attack(_: Path, *, replies: int = 130) -> Tally:
    """Send about so many replies to each client; from 130 on, those without an end too."""
    every = {name: _whole(sent) for name, sent in (HOSTILE | further()).items()}
    spread = max(1, len(every) // replies)
    chosen = dict(islice(every.items(), 0, None, spread)) | (STREAMS if replies >= 130 else {})
    os.environ.update(SERPER_API_KEY="secret-key", OPENAI_API_KEY="secret-key")
    tally = Tally(what=f"{len(chosen)} hostile replies, each to four clients")
    asyncio.run(_attack(tally, chosen))
    return tally


def _whole(sent: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter([sent])


async def _attack(tally: Tally, sent: Mapping[str, Callable[[], Iterator[bytes]]]) -> None:
    answer: list[Callable[[], Iterator[bytes]]] = []
    with RawServer(lambda: answer[-1]()) as server:
        for name, pieces in sent.items():
            answer.append(pieces)
            for client, make in CLIENTS.items():
                with tally.attempt(f"{name}, {client}"):
                    async with _awake():
                        _check(await _episode(make(server.url)))
            with tally.attempt(f"{name}, generator"):
                async with _awake():
                    await _completion(server.url)


@asynccontextmanager
async def _awake() -> AsyncIterator[None]:
    """Raises where the event loop stood still within."""
    longest, last = 0.0, time.monotonic()

    async def beat() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        yield
        await asyncio.sleep(0.02)
    finally:
        beating.cancel()
    assert longest < LONGEST_PAUSE_S, f"the event loop stood still for {longest:.1f} s"


async def _episode(engine: Any) -> Trajectory:
    tokenizer = make_tokenizer()
    script = ScriptedGenerator(tokenizer, ["<search>city</search>", "<answer>Lima</answer>"])
    rollouter = Rollouter(script, tokenizer, EPISODE)
    [trajectory] = await rollouter.rollout(
        [Question(uid="q", text="Capital of Peru?", golden_answers=("Lima",))],
        engine,
        group_size=1,
        noise_probability=0.0,
        seed=0,
        step=0,
        sampling=Sampling(),
    )
    return trajectory


def _check(trajectory: Trajectory) -> None:
    """Raise where a reply that is none is not a failure, or where its harm is in the episode."""
    text = make_tokenizer().decode(trajectory.response_ids)
    assert isinstance(text, str)
    assert trajectory.valid == (trajectory.error is None)
    assert trajectory.valid or "<information>" not in text, "a failed search has documents"
    assert text.count("<answer>") <= 1 and text.count("</information>") <= 1, "a live tag"
    held = [harm for harm in LIVE if harm in text]
    assert not held, f"{held} in a trajectory"
    flags = zip(trajectory.response_ids, trajectory.sampled, strict=True)
    assert all(id < 256 or sampled for id, sampled in flags), "a control token was inserted"


async def _completion(url: str) -> None:
    server = VLLMServer(url, sync_timeout_s=1.0)
    try:
        reply = await server.complete("m", [1], {}, 3.0)
        sampled_of(reply, 0, url=url, vocabulary=10, most_tokens=5)
    except (CallFailure, InputError):
        return
    raise AssertionError("it was read as a completion")
