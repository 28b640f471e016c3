"""Servers that are lost, restarted or unfit, without vLLM: what callers are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.models import make_model, make_tokenizer
from tests.helpers.openai_server import free_port
from tests.helpers.policies import greedy, run
from tests.helpers.waiting import guarded
from zerosearch.clients.endpoints import CallFailure
from zerosearch.core.devices import device_thread
from zerosearch.generation.vllm.client import VLLMServer
from zerosearch.generation.vllm.server_generator import VLLMServerGenerator
from zerosearch.generation.vllm.sync import Synced

REPLY = {
    "id": "1",
    "choices": [
        {"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "length"}
    ],
    "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
}


def synced(*urls: str) -> tuple[VLLMServerGenerator, Any]:
    """A generator whose servers hold the weights "a:1"."""
    model = make_model(1)
    generator = VLLMServerGenerator(endpoints=urls)
    generator.bind(model, make_tokenizer())
    generator._synced = Synced(model="policy", context=64, held="a:1")
    return generator, model


def script(generator: VLLMServerGenerator, url: str, version: str, *replies: Any) -> list[int]:
    """Let a server answer so, the last reply for ever; returns the list its calls go to."""
    server, calls, left = generator._servers[url], [], list(replies)

    async def complete(*_: Any, **__: Any) -> Any:
        calls.append(1)
        reply = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def weight_version() -> str:
        if isinstance(left[0], CallFailure):
            raise left[0]
        return version

    server.complete = complete  # type: ignore[method-assign]
    server.weight_version = weight_version  # type: ignore[method-assign]
    return calls


A, B = "http://127.0.0.1:1", "http://127.0.0.1:2"


def lost(url: str) -> CallFailure:
    return CallFailure(url, "the connection broke", kind="unreachable")


def test_requests_go_to_the_server_with_the_fewest() -> None:
    generator, _ = synced(A, B)
    calls = [script(generator, url, "a:1", REPLY) for url in (A, B)]
    completions = run(*(generator.generate([1, 2, 3], greedy(1)) for _ in range(10)))
    assert [len(each) for each in calls] == [5, 5]
    assert completions[0].token_ids == [5] and completions[0].stop_reason == "length"
    assert (generator.prompt_tokens, generator.cached_tokens) == (30, 20)


def test_a_request_of_a_lost_server_is_made_again_elsewhere() -> None:
    generator, _ = synced(A, B)
    script(generator, A, "a:1", lost(A))
    calls = script(generator, B, "a:1", REPLY)
    for _ in range(2):
        assert run(generator.generate([1], greedy(1)))[0].token_ids == [5]
    assert len(calls) == 2


def test_a_server_started_anew_gets_no_requests_and_ends_the_rollout() -> None:
    generator, _ = synced(A, B)
    calls = script(generator, A, "default", lost(A), REPLY)
    script(generator, B, "a:1", REPLY)

    async def several() -> None:
        for _ in range(6):
            await generator.generate([1], greedy(1))

    run(several())
    assert len(calls) <= 1, "down, and not up again with other weights"
    with pytest.raises(RuntimeError, match=r"127.0.0.1:1: it holds the weights 'default' instead"):
        run(generator.release())


def test_no_server_left(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, _ = synced(A)
    generator._pool.max_outage_s = 0.0
    script(generator, A, "a:1", lost(A))
    with pytest.raises(
        RuntimeError, match=r"generator=vllm_server: .*127.0.0.1:1.*connection broke"
    ):
        run(generator.generate([1], greedy(1)))


def test_a_refused_request_is_not_repeated() -> None:
    generator, _ = synced(A)
    refusal = CallFailure(A, "HTTP 400 (prompt is too long)", kind="rejected")
    calls = script(generator, A, "a:1", refusal)
    with pytest.raises(RuntimeError, match=r"127.0.0.1:1: HTTP 400"):
        run(generator.generate([1], greedy(1)))
    assert len(calls) == 1


def test_nobody_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    generator, model = synced(url)
    with pytest.raises(RuntimeError, match=rf"generator=vllm_server: {url}: connection failed"):
        run(generator.sync_weights(model))


def test_before_the_first_sync() -> None:
    generator, _ = synced(A)
    generator._synced = None
    with pytest.raises(ValueError, match="no weights yet; call sync_weights"):
        run(generator.generate([1], greedy(1)))
    run(generator.release())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"endpoints": []}, r"generator.endpoints=\[\]: give a list of servers"),
        ({"endpoints": A}, r"generator.endpoints='http.*: give a list of servers"),
        ({"endpoints": ["here"]}, r"generator.endpoints='here' is no URL"),
        ({"endpoints": [A], "timeout_s": 0}, "generator.timeout_s=0: give seconds above 0"),
        ({"endpoints": [A], "dtype": "half"}, "generator.dtype=half is unknown: use one of auto"),
        ({"endpoints": [A], "max_retries": -1}, "generator.max_retries=-1: give 0 or more"),
    ],
)
def test_settings_out_of_range(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        VLLMServerGenerator(**settings)


@pytest.mark.parametrize(
    "choice",
    [
        {"token_ids": None, "logprobs": None, "finish_reason": "stop"},
        {"token_ids": [1], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "abort"},
    ],
)
def test_a_reply_without_what_training_needs(choice: dict) -> None:
    """One is asked for again, elsewhere where there is somebody; too many end the run."""
    generator, _ = synced(A, B)
    bad = REPLY | {"choices": [choice]}
    calls = script(generator, A, "a:1", bad), script(generator, B, "a:1", REPLY)
    for _ in range(2):
        assert run(generator.generate([1], greedy(1)))[0].token_ids == [5]
    assert [len(each) > 0 for each in calls] == [True, True]
    script(generator, B, "a:1", bad)
    with pytest.raises(
        RuntimeError, match=r"finish reason (stop|abort); start it with `zerosearch gen"
    ):
        run(generator.generate([1], greedy(1)))


def test_workers_that_cannot_reach_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for their end of the link, which will not come."""
    server = VLLMServer(A, sync_timeout_s=3600)

    async def rpc(method: str, arguments: list[Any], timeout_s: float) -> list[Any]:
        assert method == "reach_policy"
        raise CallFailure(A, "HTTP 500 (timed out)", kind="unreachable")

    monkeypatch.setattr(server, "rpc", rpc)
    cpu = torch.device("cpu")
    with (
        guarded(),
        device_thread("weights", cpu) as thread,
        pytest.raises(
            CallFailure, match=r"cannot reach the policy's process at 127.0.0.1:\d+ \(HTTP 500"
        ),
    ):
        run(server.connect([{"rank": 0, "link": None}], cpu, thread))


def test_endpoints_may_end_in_v1() -> None:
    server = VLLMServer(f"{A}/v1", sync_timeout_s=1)
    assert server.url == A
