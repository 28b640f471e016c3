"""A chat model in this process: the prompts of a server, the replies of a generator."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.models import make_model, save_policy_folder
from zerosearch.clients.chat import Tally
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.source import PolicySource
from zerosearch.simulator.engine import SimulatedSearch
from zerosearch.simulator.local_chat import LocalChat
from zerosearch.types import SearchError, SearchRequest

MESSAGES = [{"role": "user", "content": "useful 1 Query: x"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_policy_folder(tmp_path / "simulator", chat_template=True)


def make_chat(folder: Path, **fields: object) -> LocalChat:
    source = PolicySource(path=str(folder), chat=True)
    return LocalChat(source, TransformersGenerator(**fields), device="cpu")  # type: ignore[arg-type]


def body(**fields: object) -> dict[str, object]:
    return {"messages": MESSAGES, "temperature": 0.0, "max_tokens": 8, "seed": 1, **fields}


def test_greedy_replies_are_those_of_transformers(folder: Path) -> None:
    tally = Tally()
    reply = asyncio.run(make_chat(folder).ask(body(), timeout_s=60.0, tally=tally))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=256)
    new = written[0, ids["input_ids"].shape[1] :]
    assert reply.text == tokenizer.decode(new, skip_special_tokens=True)
    assert reply.finish_reason == ("stop" if 256 in new else "length")
    assert tally.tokens == reply.tokens == ids["input_ids"].shape[1] + len(new)
    assert tally.attempts == 1


def test_replies_depend_on_the_seed_and_on_nothing_else(folder: Path) -> None:
    async def ask(chat: LocalChat, seeds: list[int]) -> list[str]:
        asked = [
            chat.ask(body(temperature=1.0, seed=seed, max_tokens=12), timeout_s=60.0, tally=Tally())
            for seed in seeds
        ]
        return [reply.text for reply in await asyncio.gather(*asked)]

    together = asyncio.run(ask(make_chat(folder), [1, 2, 3]))
    assert len(set(together)) == 3
    assert asyncio.run(ask(make_chat(folder), [2])) == [together[1]]


def test_one_chat_serves_several_event_loops(folder: Path) -> None:
    chat = make_chat(folder)
    first = asyncio.run(chat.ask(body(), timeout_s=60.0, tally=Tally()))
    assert asyncio.run(chat.ask(body(), timeout_s=60.0, tally=Tally())) == first


def test_too_long_a_prompt_is_a_failed_search(folder: Path) -> None:
    request = SearchRequest(query="x" * 5000, question="?", golden_answers=("a",), top_k=1)
    with pytest.raises(SearchError, match="max_position_embeddings"):
        asyncio.run(SimulatedSearch(make_chat(folder), prompt_template="compact").search(request))


def test_a_simulator_tuned_anew_under_the_same_path_is_another(folder: Path) -> None:
    request = SearchRequest(query="x", question="?", golden_answers=("a",), top_k=1)

    def key() -> object:
        return SimulatedSearch(make_chat(folder)).cache_key(request)

    before = key()
    assert key() == before
    make_model(7).save_pretrained(folder)
    assert key() != before


@pytest.mark.parametrize("file", ["a.gguf", "pytorch_model.bin"])
def test_weights_of_any_format_tell_simulators_apart(tmp_path: Path, file: str) -> None:
    names = set()
    for content in (b"one", b"two"):
        (tmp_path / file).write_bytes(content)
        (tmp_path / "config.json").write_text("{}")
        gguf = file if file.endswith(".gguf") else None
        source = PolicySource(path=str(tmp_path), gguf_file=gguf)
        names.add(LocalChat(source, TransformersGenerator()).model)
    assert len(names) == 2


def test_a_missing_model_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    engine = SimulatedSearch(make_chat(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"simulator: no model in .*none.*tune one first"):
        asyncio.run(engine.check())


def test_the_model_is_not_trained(folder: Path) -> None:
    chat = make_chat(folder)
    asyncio.run(chat.check())
    with torch.no_grad():
        reply = asyncio.run(chat.ask(body(), timeout_s=60.0, tally=Tally()))
    assert reply.text == asyncio.run(chat.ask(body(), timeout_s=60.0, tally=Tally())).text
