"""One vLLM server that samples: its calls, and the link over which it gets weights."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch

from zerosearch.clients.attempts import ServerFailure
from zerosearch.clients.bounded_replies import MAX_REPLY_BYTES
from zerosearch.clients.endpoints import CallFailure
from zerosearch.clients.http_failures import call, checked_url, json_body, understood
from zerosearch.clients.http_pool import open_client
from zerosearch.clients.per_loop import PerLoop
from zerosearch.generation.vllm.forms import (
    CompletionForm,
    Models,
    ReplyForm,
    ResultsForm,
    Tokens,
    WeightInfo,
    Workers,
)
from zerosearch.generation.vllm.llm_engine import Sampled
from zerosearch.generation.vllm.weight_link import WeightLink, hosted_store, own_address

QUICK_TIMEOUT_S = 30.0  # of calls that cost the server nothing, asked while it is busy
START = "start it with `zerosearch generate model=...`, which sets the flags it needs"


class VLLMServer:
    """A server, by its endpoint.

    Args:
        endpoint: base URL; `/v1` is optional.
        sync_timeout_s: longest wait for the other ends of the link.
        max_reply_bytes: most bytes of a reply, unpacked.

    Raises:
        InputError: the endpoint is no plain http(s) URL.
    """

    def __init__(
        self, endpoint: str, *, sync_timeout_s: float, max_reply_bytes: int = MAX_REPLY_BYTES
    ) -> None:
        self.url = checked_url("generator.endpoints", endpoint).removesuffix("/v1")
        self.sync_timeout_s = sync_timeout_s
        self.link: WeightLink | None = None
        self._link_name = ""
        self._clients = PerLoop(
            lambda: open_client(self.url, max_reply_bytes), httpx.AsyncClient.aclose
        )

    # -- requests ----------------------------------------------------------------------------

    async def complete(
        self, model: str, prompt_ids: Sequence[int], parameters: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        """One completion, as `sampled_of` reads it.

        Raises:
            CallFailure: no reply, an error, or a reply of another form; so of all calls.
        """
        body = {"model": model, "prompt": [list(prompt_ids)], "return_token_ids": True}
        reply = await self.post("/v1/completions", body | parameters, timeout_s=timeout_s)
        return self._checked(CompletionForm, reply)

    async def models(self) -> list[dict[str, Any]]:
        """What it serves: `id` and `max_model_len` of each."""
        reply = await self._call("GET", "/v1/models", None, QUICK_TIMEOUT_S)
        return self._checked(Models, reply)["data"]

    async def tokenize(self, model: str, text: str) -> list[int]:
        """Token ids of a text without special tokens around it."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return self._checked(Tokens, await self.post("/tokenize", body))["tokens"]

    async def weight_version(self) -> str:
        """What the last sync has set; a server that was started anew says "default"."""
        reply = await self._call("GET", "/weight_info", None, QUICK_TIMEOUT_S)
        return self._checked(WeightInfo, reply)["weight_version"]

    async def workers(self, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Each worker's `describe_policy`."""
        results = await self.rpc("describe_policy", [list(fields)], QUICK_TIMEOUT_S)
        return self._checked(Workers, {"results": results})["results"]

    async def rpc(self, method: str, arguments: list[Any], timeout_s: float) -> list[Any]:
        """Call a method of `PolicyWeights` in every worker; returns their results."""
        body = {"method": method, "args": arguments}
        reply = await self.post("/collective_rpc", body, timeout_s=timeout_s)
        return self._checked(ResultsForm, reply)["results"]

    async def post(
        self, path: str, body: dict[str, Any] | None = None, timeout_s: float = QUICK_TIMEOUT_S
    ) -> Any:
        """One call; its JSON reply."""
        return await self._call("POST", path, body, timeout_s)

    def _checked(self, form: type[ReplyForm], reply: Any) -> Any:
        """The reply as it came, where it has the form."""
        what = f"{form.__name__} of vLLM"
        try:
            understood(reply, form.model_validate, what=what, endpoint=self.url)
        except ServerFailure as failure:
            raise CallFailure(self.url, failure.reason, kind="faulty") from None
        return reply

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> Any:
        client = await self._clients.get()
        request = client.build_request(method, f"{self.url}{path}", json=body)
        try:
            reply = await call(client, request, endpoint=self.url, timeout_s=timeout_s)
            return json_body(reply, endpoint=self.url)
        except ServerFailure as failure:
            kind = "unreachable" if failure.transient else "rejected"
            raise CallFailure(self.url, failure.reason, kind=kind) from None

    # -- weights -----------------------------------------------------------------------------

    async def connect(
        self, workers: list[dict[str, Any]], device: torch.device, thread: Executor
    ) -> None:
        """Make the link, unless the workers still hold the present one.

        Args:
            workers: see `workers`.
            device: where the weights come from.
            thread: that sends them.

        Raises:
            CallFailure: the server is lost, or the other ends do not come.
        """
        names = {worker["link"] for worker in workers}
        if self.link is not None and names == {self._link_name}:
            return
        parts = urlsplit(self.url)
        address = own_address(parts.hostname or "", parts.port or 80)
        store, port = hosted_store(address, self.sync_timeout_s)
        await self._reach(address, port)
        self._link_name, size = secrets.token_hex(8), 1 + len(workers)
        joining = asyncio.create_task(
            self.rpc(
                "join_policy",
                [self._link_name, address, port, size, device.type, self.sync_timeout_s],
                self.sync_timeout_s,
            )
        )

        def own_end() -> WeightLink:
            return WeightLink(
                store,
                rank=0,
                size=size,
                device=device,
                address=address,
                timeout_s=self.sync_timeout_s,
            )

        try:
            loop = asyncio.get_running_loop()
            self.link = await loop.run_in_executor(thread, own_end)
        except RuntimeError as error:
            joining.cancel()
            reason = f"its workers do not connect to {address}:{port} ({error})"
            raise CallFailure(self.url, reason, kind="unreachable") from error
        await joining

    async def _reach(self, address: str, port: int) -> None:
        """Raise where the workers see no policy there: its end would wait for theirs in vain."""
        try:
            await self.rpc("reach_policy", [address, port], QUICK_TIMEOUT_S)
        except CallFailure as failure:
            reason = (
                f"its workers cannot reach the policy's process at {address}:{port} "
                f"({failure.reason}): let them through, on every port"
            )
            raise CallFailure(self.url, reason, kind=failure.kind) from None


def sampled_of(
    reply: dict[str, Any], weight_version: int, *, url: str, vocabulary: int, most_tokens: int
) -> Sampled:
    """A completion of the API.

    Args:
        reply: of `VLLMServer.complete`.
        weight_version: that it was sampled with.
        url: of the server.
        vocabulary: token ids that the policy knows.
        most_tokens: that were asked for.

    Raises:
        CallFailure: it lacks a flag, has aborted the request, or sent what no policy samples.
    """
    choice = reply["choices"][0]
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if not ids or not logprobs or choice.get("finish_reason") not in ("stop", "length"):
        reason = (
            f"its reply has {len(ids or [])} token ids, {len(logprobs or [])} log-probs and the "
            f"finish reason {choice.get('finish_reason')}; {START}"
        )
        raise CallFailure(url, reason, kind="faulty")
    if not len(ids) == len(logprobs) <= most_tokens or max(ids) >= vocabulary:
        reason = (
            f"its reply has {len(ids)} token ids up to {max(ids)} and {len(logprobs)} log-probs, "
            f"where at most {most_tokens} ids below {vocabulary} were asked for"
        )
        raise CallFailure(url, reason, kind="faulty")
    details = reply["usage"].get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Sampled(
        request_id=reply["id"],
        token_ids=ids,
        logprobs=logprobs,
        stopped=choice["finish_reason"] == "stop",
        weight_version=weight_version,
        prompt_tokens=reply["usage"]["prompt_tokens"],
        cached_tokens=cached if isinstance(cached, int) else 0,
    )
