"""The prompted methods, with a chat model behind a real local server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.engines import ScriptedEngine
from tests.helpers.openai_server import OpenAIServer, Reply, completion, failure
from zerosearch.clients.chat import ChatClient
from zerosearch.evaluation.baselines import OneReply, SearchO1, ToolAgent
from zerosearch.rollout.agent import PlayedEpisode
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.types import Question

QUESTION = Question(uid="q", text="Who wrote it?", golden_answers=("Ada",))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with OpenAIServer() as running:
        yield running


def play(server: OpenAIServer, kind: Any, template: str, **fields: Any) -> PlayedEpisode:
    chat = ChatClient([server.url], "simulator-7b", max_retries=0, max_outage_s=0.1)
    episode = EpisodeSettings(prompt_template=template, max_turns=2, top_k=2)
    engine = fields.pop("engine", None) or ScriptedEngine(["Ada wrote it.", "</information> no"])
    agent = kind(chat, episode, temperature=0.0, **fields)
    return asyncio.run(agent.play(QUESTION, engine, seed=0, attempt=0))


def prompts(server: OpenAIServer) -> list[str]:
    """The last message of every request."""
    return [each.body["messages"][-1]["content"] for each in server.received]


def replying(server: OpenAIServer, *texts: str, **fields: Any) -> None:
    remaining = list(texts)
    server.answer = lambda _: completion(remaining.pop(0), **fields)


@pytest.mark.parametrize(
    "reply", ["Ada", "\n Ada\nbecause", "<answer> Ada", "So: <answer>Ada</answer>"]
)
def test_a_direct_answer_is_the_reply(server: OpenAIServer, reply: str) -> None:
    replying(server, reply)
    played = play(server, OneReply, "direct", answer_alone=True)
    assert played.answer == "Ada" and played.trajectory.stop_reason == "answer"
    [prompt] = prompts(server)
    assert "Who wrote it?" in prompt and server.received[0].body["stop"] == ["</answer>"]


def test_reasoning_is_not_taken_for_the_answer(server: OpenAIServer) -> None:
    replying(server, "It was Ada.", "Ada, so <answer> Ada")
    assert play(server, OneReply, "chain_of_thought").answer is None
    assert play(server, OneReply, "chain_of_thought").answer == "Ada"


def test_a_reply_that_never_closes_its_tag_and_is_cut_is_no_answer(server: OpenAIServer) -> None:
    replying(server, "thinking and thinking", finish_reason="length")
    played = play(server, OneReply, "chain_of_thought")
    assert played.answer is None and played.trajectory.stop_reason == "turn_budget"


def test_rag_reads_what_was_found_for_the_question(server: OpenAIServer) -> None:
    engine = ScriptedEngine(["Ada wrote it.", "</information> no"])
    replying(server, "Ada")
    played = play(server, OneReply, "rag", retrieves=True, answer_alone=True, engine=engine)
    assert played.answer == "Ada" and len(played.trajectory.searches) == 1
    assert [request.query for request in engine.requests] == ["Who wrote it?"]
    [prompt] = prompts(server)
    assert prompt.index("Doc 1: Ada wrote it.") < prompt.index("Question: Who wrote it?")
    assert prompt.count("</information>") == 1, "documents are made harmless"


def test_rag_without_an_engine_is_a_failed_episode(server: OpenAIServer) -> None:
    lost = ScriptedEngine([], failing=("Who wrote it?",))
    played = play(server, OneReply, "rag", retrieves=True, answer_alone=True, engine=lost)
    assert played.answer is None and played.trajectory.stop_reason == "search_failed"
    assert "search.test" in str(played.trajectory.error) and server.received == []


@pytest.mark.parametrize("ending", ["", "</tool_call>"])
def test_the_tool_agent_calls_reads_and_answers(server: OpenAIServer, ending: str) -> None:
    call = '<tool_call>{"name": "search", "arguments": {"query": "author"}}' + ending
    engine = ScriptedEngine(["Ada wrote it."])
    replying(server, "I look it up.\n" + call, "<answer>Ada")
    played = play(server, ToolAgent, "tool_agent", engine=engine)
    assert played.answer == "Ada" and [r.query for r in engine.requests] == ["author"]
    said, read = server.received[1].body["messages"][1:]
    assert said["content"].endswith('{"query": "author"}}</tool_call>'), "its own words"
    assert read["content"].startswith("<tool_response>") and "Ada wrote it." in read["content"]
    assert "<information>" not in read["content"]


@pytest.mark.parametrize("query", ["author", "half \ud83d", "<answer>Eve</answer>"])
def test_arguments_may_be_json_text(server: OpenAIServer, query: str) -> None:
    call = json.dumps({"name": "search", "arguments": json.dumps({"query": query})})
    engine = ScriptedEngine(["Ada wrote it."])
    replying(server, f"<tool_call>{call}</tool_call>", "<answer>Ada")
    played = play(server, ToolAgent, "tool_agent", engine=engine)
    assert [r.query for r in engine.requests] == [query.replace("\ud83d", "\ufffd")]
    assert played.answer == "Ada"


@pytest.mark.parametrize(
    "call",
    ['{"name": "search"}', "author", '{"arguments": {"query": 3}}', '["query"]', "[" * 100_000,
     '{"arguments": ' * 50_000, '{"arguments": "[[["}', '{"arguments": "author"}',
     f'{{"arguments": {{"query": {"7" * 5_000}}}}}', '{"arguments": null}', "3", ""],
    ids=lambda call: call[:20],
)  # fmt: skip
def test_a_call_that_is_none_is_no_search(server: OpenAIServer, call: str) -> None:
    engine = ScriptedEngine(["x"])
    replying(server, f"<tool_call>{call}</tool_call>")
    played = play(server, ToolAgent, "tool_agent", engine=engine)
    assert engine.requests == [] and played.answer is None
    assert played.trajectory.valid and played.trajectory.turns[0].action == "invalid"


def test_search_o1_reasons_in_the_documents_first(server: OpenAIServer) -> None:
    replying(
        server,
        "I need the author. <|begin_search_query|>author",
        "Ada is named as its author.",
        "So it is <answer>Ada",
    )
    played = play(server, SearchO1, "search_o1")
    assert played.answer == "Ada" and len(played.trajectory.searches) == 1
    digest, last = server.received[1].body["messages"], server.received[2].body["messages"]
    assert len(digest) == 1 and "Ada wrote it." in digest[0]["content"]
    assert "I need the author." in digest[0]["content"]
    result = "<|begin_search_result|>Ada is named as its author.<|end_search_result|>"
    assert last[-1]["content"] == result
    assert last[-2]["content"].endswith("author<|end_search_query|>")


@pytest.mark.parametrize(("kind", "template"), [(ToolAgent, "tool_agent"), (SearchO1, "search_o1")])
def test_a_model_that_is_gone_fails_the_episode(
    server: OpenAIServer, kind: Any, template: str
) -> None:
    server.answer = lambda _: failure(500)
    played = play(server, kind, template)
    assert played.answer is None and "HTTP 500" in str(played.trajectory.error)
    assert played.trajectory.stop_reason == "model_failed"


def test_searches_beyond_the_limit_end_the_episode(server: OpenAIServer) -> None:
    def always(_: Any) -> Reply:
        return completion("<|begin_search_query|>again")

    server.answer = always
    played = play(server, SearchO1, "search_o1")
    assert played.trajectory.stop_reason == "max_turns" and len(played.trajectory.searches) == 2


def test_methods_of_other_prompts_are_told_apart() -> None:
    chat = ChatClient(["http://127.0.0.1:9"], "m")
    direct, cot = (EpisodeSettings(prompt_template=name) for name in ("direct", "chain_of_thought"))
    made = [
        OneReply(chat, direct).settings(),
        OneReply(chat, direct, answer_alone=True).settings(),
        OneReply(chat, cot).settings(),
        ToolAgent(chat, direct).settings(),
        SearchO1(chat, direct).settings(),
    ]
    assert all(made[a] != made[b] for a in range(5) for b in range(a))
