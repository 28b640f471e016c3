"""An exported simulator behind vLLM reads and writes what one in this process does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import hydra
import pytest

from tests.helpers.configs import compose_config
from zerosearch.clients.chat import Tally
from zerosearch.policy.export import save_policy
from zerosearch.policy.source import PolicySource
from zerosearch.serving.launch import running, server_settings
from zerosearch.simulator.engine import SimulatedSearch
from zerosearch.simulator.prompt import SimulatorPrompt
from zerosearch.tuning.chat_template import servable
from zerosearch.types import SearchRequest

REQUESTS = [
    SearchRequest(
        query=f"country of {city}",
        question=f"In which country is {city}?",
        golden_answers=(country,),
        top_k=1,
        noise_probability=noise,
    )
    for city, country in (("Lyon", "France"), ("Cuzco", "Peru"), ("Kyoto", "Japan"))
    for noise in (0.0, 1.0)
]


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """The quickstart's policy, exported as a simulator; its files ask for sampling of their own."""
    source = PolicySource(path="pkg://zerosearch/policy/quickstart")
    model = source.load_model()
    model.generation_config.repetition_penalty = 1.5  # as those of published instruct models do
    template = SimulatorPrompt("compact", 30).fixed_text()
    tokenizer = servable(source.load_tokenizer(), chat=False)
    folder = tmp_path / "simulator"
    return save_policy(model, tokenizer, folder, {}, texts={"prompt.j2": template})


def replies(engine: SimulatedSearch) -> list[tuple[str, int]]:
    """Greedy texts, and tokens read and written."""

    async def ask() -> list[tuple[str, int]]:
        await engine.check()
        bodies: list[dict[str, Any]] = [
            {
                "messages": engine.prompt.messages(each, noisy=each.noise_probability > 0),
                "temperature": 0.0,
                "max_tokens": 24,
                "seed": 0,
            }
            for each in REQUESTS
        ]
        asked = [engine.client.ask(body, timeout_s=600.0, tally=Tally()) for body in bodies]
        return [(reply.text, reply.tokens) for reply in await asyncio.gather(*asked)]

    return asyncio.run(ask())


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)  # vLLM starts, on a busy machine too
def test_vllm_reads_and_writes_what_the_process_does(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = f"simulator.folder='{exported}'"
    local = compose_config(tmp_path, "simulator=in_process", folder)
    chosen = ["simulator=tiny_tuned_vllm", "simulator.server.port=null"]
    served = compose_config(tmp_path, *chosen, folder)
    with running(server_settings(served.simulator), tmp_path) as servers:
        served.simulator.endpoints = [server.command.endpoint for server in servers]
        by_vllm = replies(hydra.utils.instantiate(served.search))
    assert by_vllm == replies(hydra.utils.instantiate(local.search))
    assert len({text for text, _ in by_vllm}) > 1
