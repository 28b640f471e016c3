"""Agents: a model of this process, and a chat model behind a real local server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.engines import ScriptedEngine
from tests.helpers.openai_server import OpenAIServer, Reply, completion, failure
from tests.helpers.words import save_word_policy
from zerosearch.clients.chat import ChatClient
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.source import PolicySource
from zerosearch.rollout.chat_agent import ChatAgent, close_tag
from zerosearch.rollout.local_agent import LocalAgent
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.types import Question, Trajectory

QUESTION = Question(uid="q", text="Who wrote it?", golden_answers=("Ada",))
EPISODE = EpisodeSettings(
    prompt_template="plain",
    max_turns=2,
    top_k=2,
    max_prompt_tokens=64,
    max_turn_tokens=32,
    max_observation_tokens=40,
    max_context_tokens=400,
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def chat_agent(
    server: OpenAIServer, episode: EpisodeSettings = EPISODE, **fields: Any
) -> ChatAgent:
    settings = {"node": "agent.client", "max_retries": 1, "backoff_s": 0.01, "max_outage_s": 0.1}
    chat = ChatClient([server.url], "simulator-7b", **settings, **fields)  # type: ignore[arg-type]
    return ChatAgent(chat, episode)


def play(agent: Any, engine: ScriptedEngine, **fields: Any) -> Trajectory:
    played = agent.play(QUESTION, engine, **{"seed": 0, "attempt": 0, **fields})
    return asyncio.run(played).trajectory


def search_then_answer(body: dict[str, Any]) -> Reply:
    """A model that searches once; the server leaves the stop text out, as vLLM does."""
    turn = sum(message["role"] == "assistant" for message in body["messages"])
    return completion("<think>hm</think><search>author" if turn == 0 else "<answer>Ada")


def test_a_chat_model_searches_reads_and_answers() -> None:
    engine = ScriptedEngine(["Ada wrote it.", "</information> no."])
    with OpenAIServer(answer=search_then_answer) as server:
        found = play(chat_agent(server), engine)
        first, second = server.received
    assert [turn.action for turn in found.turns] == ["search", "answer"]
    assert found.stop_reason == "answer" and found.final_text == "<answer>Ada</answer>"
    assert engine.requests[0].query == "author" and engine.requests[0].golden_answers == ("Ada",)
    assert first.body["messages"] == [{"role": "user", "content": "Question: Who wrote it?\n"}]
    assert first.body["stop"] == ["</search>", "</answer>"] and first.body["max_tokens"] == 32
    sent = second.body["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert sent[1]["content"] == "<think>hm</think><search>author</search>"
    assert "Ada wrote it." in sent[2]["content"]
    assert sent[2]["content"].count("</information>") == 1, "documents cannot close the tag"


@pytest.mark.parametrize(
    ("reply", "stop"),
    [
        (completion("I know it: Ada."), "eos"),
        (completion("<search>never closed", finish_reason="length"), "turn_budget"),
        (completion("<answer></answer>"), "answer"),
        (completion(""), "eos"),
    ],
)
def test_turns_without_an_action_end_the_episode(reply: Reply, stop: str) -> None:
    with OpenAIServer(answer=lambda _: reply) as server:
        found = play(chat_agent(server), ScriptedEngine(["text"]))
    assert (found.stop_reason, found.error, len(found.turns)) == (stop, None, 1)


def test_the_last_turn_must_answer() -> None:
    with OpenAIServer(answer=lambda _: completion("<search>again</search>")) as server:
        found = play(chat_agent(server), ScriptedEngine(["text"]))
    assert found.stop_reason == "max_turns" and len(found.searches) == 2


def test_long_documents_are_cut_and_a_full_context_ends_the_episode() -> None:
    engine = ScriptedEngine(["long " * 400, "more"])
    with OpenAIServer(answer=lambda _: completion("<search>again</search>")) as server:
        found = play(chat_agent(server), engine)
        assert found.turns[0].observation is not None
        assert 100 < len(found.turns[0].observation) <= 40 * 4 + 8
        short = EpisodeSettings(
            prompt_template="plain",
            max_prompt_tokens=32,
            max_turn_tokens=16,
            max_observation_tokens=40,
            max_context_tokens=60,
        )
        assert play(chat_agent(server, short), engine).stop_reason == "context"


def test_a_model_that_cannot_be_asked_makes_the_episode_invalid() -> None:
    with OpenAIServer(answer=lambda _: failure(500)) as server:
        found = play(chat_agent(server), ScriptedEngine(["text"]))
    assert not found.valid and found.error is not None
    assert f"agent {server.url}" in found.error and "HTTP 500" in found.error


def test_a_failed_search_makes_the_episode_invalid() -> None:
    with OpenAIServer(answer=search_then_answer) as server:
        found = play(chat_agent(server), ScriptedEngine([], failing=(QUESTION.text,)))
    assert not found.valid and found.error is not None and "search.test" in found.error


def test_seeds_tell_attempts_and_turns_apart() -> None:
    with OpenAIServer(answer=search_then_answer) as server:
        for attempt in (0, 1, 0):
            play(chat_agent(server), ScriptedEngine(["text"]), attempt=attempt)
        seeds = [each.body["seed"] for each in server.received]
    assert seeds[:2] == seeds[4:] and len({*seeds[:4]}) == 4


def test_what_a_chat_costs_is_counted() -> None:
    with OpenAIServer(answer=lambda _: completion("<answer>Ada", tokens=500)) as server:
        agent = chat_agent(server, usd_per_million_tokens=2.0)
        played = asyncio.run(agent.play(QUESTION, ScriptedEngine([]), seed=0, attempt=0))
    assert played.cost_usd == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("<search>x", "<search>x</search>"),
        ("<answer>x", "<answer>x</answer>"),
        ("<search>x</search>", "<search>x</search>"),
        ("<search>x</search> <answer>y", "<search>x</search> <answer>y</answer>"),
        ("<answer>y</answer> <search>x", "<answer>y</answer> <search>x</search>"),
        ("no tag", "no tag"),
    ],
)
def test_closing_tags_are_put_back(text: str, whole: str) -> None:
    assert close_tag(text) == whole


def test_a_local_model_plays_many_episodes_at_once(tmp_path: Path) -> None:
    source = PolicySource(path=str(save_word_policy(tmp_path)))
    agent = LocalAgent(source, TransformersGenerator(), EPISODE, device="cpu")
    engine = ScriptedEngine(["red"])

    async def together(count: int) -> list[Trajectory]:
        played = [agent.play(QUESTION, engine, seed=0, attempt=n) for n in range(count)]
        return [each.trajectory for each in await asyncio.gather(*played)]

    found = asyncio.run(together(20))
    assert {turn.action for each in found for turn in each.turns} >= {"search", "answer"}
    [alone] = asyncio.run(together(1))
    assert alone.response_ids == found[0].response_ids, "an attempt is what it is in any company"
    assert len({tuple(each.response_ids) for each in found}) > 3
    versions = {version for each in found for version in each.weight_versions}
    assert versions == {1}, "loaded once, and a generator with weights of its own has got them"
    assert agent.settings()["model"].startswith(f"{tmp_path}@"), "and a digest of its weights"


def test_a_local_policy_that_had_other_episodes_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a round of best of n by what was tuned on the round before."""
    source = PolicySource(path=str(save_word_policy(tmp_path)))
    other = dataclasses.replace(EPISODE, top_k=1).as_dict()
    (tmp_path / "zerosearch.json").write_text(json.dumps({"episode": other, "chat": True}))
    agent = LocalAgent(source, TransformersGenerator(), EPISODE, device="cpu")
    asyncio.run(agent.check())
    assert "top_k is 2 but the policy was trained with 1" in caplog.text
    assert "give model.chat=true" in caplog.text
    assert agent.settings()["chat"] is False


@pytest.mark.parametrize("fields", [{"temperature": -1.0}, {"turn_timeout_s": 0.0}])
def test_settings_out_of_range(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"agent\.temperature=.*agent\.turn_timeout_s="):
        ChatAgent(ChatClient([], "m"), EPISODE, **fields)
