"""A sync with servers that fails at any point leaves them answering, and says what happened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.helpers.models import make_model, make_tokenizer
from tests.helpers.policies import run
from tests.helpers.scripted_vllm import ScriptedLink, ScriptedVLLM
from zerosearch.clients.endpoints import CallFailure
from zerosearch.generation.vllm.policy import VLLMPolicy
from zerosearch.generation.vllm.sync import INCOMPLETE, ServerSync

A, B = "http://127.0.0.1:1", "http://127.0.0.1:2"


@pytest.fixture
def policy() -> VLLMPolicy:
    return VLLMPolicy(make_model(1), make_tokenizer(), dtype="auto", lora="merged")


@pytest.fixture
def servers(policy: VLLMPolicy) -> list[ScriptedVLLM]:
    return [ScriptedVLLM(url, policy.base, policy.tokens.tokenizer) for url in (A, B)]


def sync(servers: list[ScriptedVLLM], policy: VLLMPolicy, number: int = 1) -> Any:
    return run(ServerSync(servers, policy, timeout_s=1).run(number))[0]


def test_every_server_gets_every_weight_and_the_same_version(
    servers: list[ScriptedVLLM], policy: VLLMPolicy
) -> None:
    servers[1].context = 48
    synced = sync(servers, policy, 7)
    names = [name for name, _ in policy.weights()]
    for server in servers:
        assert server.scripted_link.names == names and server.scripted_link.finished == 1
        assert server.version == synced.held and not server.is_paused
    assert synced.held.endswith(":7") and (synced.model, synced.context) == ("policy", 48)


def assert_answering(server: ScriptedVLLM) -> None:
    """And noticed by whoever compares versions; the next sync connects anew."""
    assert not server.is_paused and server.version == INCOMPLETE and server.link is None


def test_a_policy_whose_weights_cannot_be_had(
    servers: list[ScriptedVLLM], policy: VLLMPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers are told that no weight follows: they would wait for it until the time-out."""

    def weights(self: VLLMPolicy) -> Iterator[Any]:
        yield "first", torch.zeros(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(VLLMPolicy, "weights", weights)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):  # with its traceback
        sync(servers, policy)
    for server in servers:
        assert server.scripted_link.finished == 1
        assert_answering(server)
    monkeypatch.undo()
    assert sync(servers, policy).held == servers[0].version, "the next sync goes well"


def test_a_link_that_breaks(servers: list[ScriptedVLLM], policy: VLLMPolicy) -> None:
    servers[1].scripted_link = ScriptedLink(broken=True)
    with pytest.raises(
        RuntimeError, match=rf"{B}: the weights could not be sent \(Connection closed"
    ):
        sync(servers, policy)
    assert [server.scripted_link.finished for server in servers] == [1, 1]
    for server in servers:
        assert_answering(server)


@pytest.mark.parametrize("route", ["/reset_prefix_cache", "/update_weight_version"])
def test_a_server_lost_at_the_end(
    servers: list[ScriptedVLLM], policy: VLLMPolicy, route: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers[1].failing[route] = CallFailure(B, "the connection broke", kind="unreachable")
    with pytest.raises(RuntimeError, match=rf"generator=vllm_server: {B}: the connection broke"):
        sync(servers, policy)
    assert_answering(servers[0])
    if route == "/update_weight_version":
        assert f"{B}: the connection broke; it answers no requests before" in caplog.text
        assert servers[1].is_paused
    else:
        assert_answering(servers[1])


def test_a_server_that_is_refused_stops_none(
    servers: list[ScriptedVLLM], policy: VLLMPolicy
) -> None:
    """Not even for a moment: another run may be using it."""
    servers[1].facts["sizes"]["hidden_size"] = 96
    for server in servers:
        server.failing["/pause"] = CallFailure(server.url, "paused", kind="rejected")
        server.version = "another run's"
    with pytest.raises(ValueError, match=rf"{B}: it serves a model with hidden_size=96"):
        sync(servers, policy)
    assert [server.version for server in servers] == ["another run's"] * 2


def test_a_defect_keeps_its_traceback(
    servers: list[ScriptedVLLM], policy: VLLMPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VLLMPolicy, "weights", lambda self: iter([{}["missing"]]))
    with pytest.raises(KeyError, match="missing"):
        sync(servers, policy)
    for server in servers:
        assert_answering(server)


def test_servers_without_our_routes(servers: list[ScriptedVLLM], policy: VLLMPolicy) -> None:
    servers[0].failing["/collective_rpc"] = CallFailure(A, "HTTP 404", kind="rejected")
    with pytest.raises(RuntimeError, match=rf"{A}: HTTP 404; start it with `zerosearch generate"):
        sync(servers, policy)
