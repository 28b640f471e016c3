"""Generator on vLLM servers, on other GPUs or hosts, that get the policy's weights at every sync.

A server that was started anew holds other weights: it is noticed by the version that the last sync
has left there, is given no requests, and gets the weights at the next sync.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerBase

from zerosearch.generation.generator import Completion, Sampling
from zerosearch.generation.vllm_adapter import sampling_parameters
from zerosearch.generation.vllm_client import (
    START,
    VLLMServer,
    check_workers,
    probe_text,
    sampled_of,
)
from zerosearch.generation.vllm_completion import completion_of, room_for
from zerosearch.generation.vllm_policy import VLLMPolicy
from zerosearch.policy.source import SIZE_FIELDS
from zerosearch.search.endpoints import AllDown, CallFailure, EndpointPool
from zerosearch.types import SearchError

_MAX_OUTAGE_S = 60.0


class VLLMServerGenerator:
    """Samples with vLLM servers, each request with the one that has the fewest.

    With several training processes, the first one sends the weights; all of them ask.

    Args:
        endpoints: base URLs of the servers.
        max_retries: further attempts of a request, on another server where there is one.
        timeout_s: longest wait for one completion.
        sync_timeout_s: longest wait for a server while weights are sent.

    Raises:
        ValueError: no endpoint is given, or one is no plain http(s) URL.
    """

    own_weights = True

    def __init__(
        self,
        *,
        endpoints: Sequence[str],
        max_retries: int = 2,
        timeout_s: float = 1800.0,
        sync_timeout_s: float = 600.0,
    ) -> None:
        if isinstance(endpoints, str) or not endpoints:
            raise ValueError(
                f"generator.endpoints={endpoints!r}: give a list of servers, such as "
                f"[http://127.0.0.1:8100/v1]; {START}"
            )
        if max_retries < 0:
            raise ValueError(f"generator.max_retries={max_retries}: give 0 or more")
        for name, value in (("timeout_s", timeout_s), ("sync_timeout_s", sync_timeout_s)):
            if not value > 0:
                raise ValueError(f"generator.{name}={value}: give seconds above 0")
        servers = [VLLMServer(each, sync_timeout_s=sync_timeout_s) for each in endpoints]
        self.weight_version = 0
        self.prompt_tokens = 0  # of all finished requests
        self.cached_tokens = 0  # of those: found in a prefix cache, so not computed
        self._servers = {server.url: server for server in servers}
        self._max_retries = max_retries
        self._timeout_s = timeout_s
        self._sync_timeout_s = sync_timeout_s
        self._policy: VLLMPolicy | None = None
        self._context: int | None = None
        self._model = ""  # the name that the servers know it by
        self._held = ""  # what servers say that hold the present weights
        self._pool = EndpointPool(
            list(self._servers), self._check_version, max_outage_s=_MAX_OUTAGE_S
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights")

    def bind(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Say which policy samples; the servers are compared with it at the first sync."""
        self._policy = VLLMPolicy(model, tokenizer, dtype="auto", lora="merged")
        self._context = None

    async def generate(self, prompt_ids: list[int], sampling: Sampling) -> Completion:
        """Sample one completion on one of the servers; see `Generator`.

        Raises:
            RuntimeError: no server could; names the endpoint.
        """
        policy = self._binding()
        if not self._held:
            raise ValueError(
                "generator=vllm_server: no weights yet; call sync_weights(policy) first"
            )
        limit = room_for(prompt_ids, sampling, self._context, "--max-model-len of the server")
        parameters = sampling_parameters(sampling, limit, policy.tokens.eos_ids)
        version = self.weight_version
        try:
            reply = await self._on_some_server(prompt_ids, parameters)
            sampled = sampled_of(reply, version)
        except (CallFailure, SearchError, ValueError) as error:
            raise RuntimeError(f"generator=vllm_server: {error}") from None
        self.prompt_tokens += sampled.prompt_tokens
        self.cached_tokens += sampled.cached_tokens
        return completion_of(sampled, policy.tokens)

    async def sync_weights(self, policy: nn.Module) -> None:
        """Send the policy's present weights to every server and drop all KV of the old ones.

        A collective where there are several training processes. Requests in progress go on with
        the new weights.

        Raises:
            ValueError: `policy` is not the bound module, or a server is not made for it.
            RuntimeError: a server is lost; names the endpoint.
        """
        if policy is not self._binding().model:
            raise ValueError(
                f"sync_weights got a {type(policy).__name__} that is not the bound model; call "
                "bind() with it first"
            )
        leads = _rank() == 0
        await self._agree(self._prepare() if leads else None)
        await self._agree(self._transfer(leads))
        await self._agree(self._resume() if leads else None)
        self.weight_version += 1

    async def release(self) -> None:
        """Make sure that everything since the sync was sampled from its weights.

        Raises:
            RuntimeError: a server was started anew, or others have sent it weights; names it.
        """
        if not self._held:
            return
        try:
            await asyncio.gather(*map(self._check_version, self._servers))
        except CallFailure as failure:
            raise RuntimeError(f"generator=vllm_server: {failure}") from None

    # -- requests ----------------------------------------------------------------------------

    def _binding(self) -> VLLMPolicy:
        if self._policy is None:
            raise ValueError("generator: no model yet; call bind(model, tokenizer) first")
        return self._policy

    async def _on_some_server(
        self, prompt_ids: Sequence[int], parameters: dict[str, Any]
    ) -> dict[str, Any]:
        tried: list[str] = []
        while True:
            try:
                async with self._pool.lease(tried) as url:
                    tried.append(url)
                    server = self._servers[url]
                    return await server.complete(
                        self._model, prompt_ids, parameters, self._timeout_s
                    )
            except AllDown:
                await self._pool.recovered()
            except CallFailure as failure:
                if failure.kind == "rejected" or len(tried) > self._max_retries:
                    raise

    async def _check_version(self, url: str) -> None:
        """Raise a `CallFailure` unless the server holds the present weights."""
        held = await self._servers[url].weight_version()
        if held != self._held:
            reason = (
                f"it holds the weights {held!r} instead of {self._held!r}: it was started anew, or "
                "another run uses it; resume the run, which sends them again"
            )
            raise CallFailure(url, reason, kind="unreachable")

    # -- weights -----------------------------------------------------------------------------

    async def _agree(self, work: Any) -> None:
        """Wait for this process's work and the others'; an error of one is an error of all."""
        error: Exception | None = None
        try:
            if work is not None:
                await work
        except (CallFailure, ValueError, RuntimeError) as raised:
            error = raised
        shared: list[Any] = [None if error is None else (type(error), str(error)), self._facts()]
        if _world_size() > 1:
            shared = await asyncio.get_running_loop().run_in_executor(self._thread, _share, shared)
        self._context, self._model, self._held = shared[1]
        if error is not None or shared[0] is not None:
            kind, said = shared[0] or (type(error), str(error))
            wanted = ValueError if kind is ValueError else RuntimeError
            raise wanted(f"generator=vllm_server: {said}") from error

    def _facts(self) -> tuple[int | None, str, str]:
        return self._context, self._model, self._held

    async def _prepare(self) -> None:
        """Compare the servers with the policy, stop them, and connect where that is to be done."""
        self._held = ""
        backend = "nccl" if self._binding().device.type == "cuda" else "gloo"
        for server in self._servers.values():
            workers = await self._check(server)
            await server.post("/pause?mode=keep")
            await server.connect(workers, backend)

    async def _check(self, server: VLLMServer) -> list[dict[str, Any]]:
        """Refuse a server that was not made for this policy; returns its workers."""
        policy = self._binding()
        try:
            models = await server.models()
            workers = await server.workers(SIZE_FIELDS)
        except CallFailure as failure:
            hint = f"; {START}" if failure.kind == "rejected" or "HTTP" in failure.reason else ""
            raise RuntimeError(f"{failure}{hint}") from None
        check_workers(server.url, workers, policy)
        probe = probe_text(policy.tokens.tokenizer)
        expected = policy.tokens.tokenizer.encode(probe, add_special_tokens=False)
        if await server.tokenize(models[0]["id"], probe) != expected:
            raise ValueError(
                f"{server.url}: its tokenizer is not the policy's, or has other special tokens; "
                f"{START}"
            )
        policy.dtype = getattr(torch, workers[0]["dtype"])  # what it would turn them into
        self._model = models[0]["id"]
        lengths = [self._context, models[0]["max_model_len"], policy.context]
        self._context = min(length for length in lengths if length is not None)
        return workers

    async def _transfer(self, leads: bool) -> None:
        """Stream the weights; the servers take them over meanwhile."""
        loop = asyncio.get_running_loop()
        receiving = [
            asyncio.create_task(server.rpc("receive_policy", [], self._sync_timeout_s))
            for server in self._servers.values()
            if leads
        ]
        try:
            await loop.run_in_executor(self._thread, self._send, leads)
        except RuntimeError as error:
            await asyncio.gather(*receiving)  # a server that is gone says so itself
            raise RuntimeError(f"the weights could not be sent ({error})") from error
        finally:
            await asyncio.gather(*receiving, return_exceptions=True)
        await asyncio.gather(*receiving)

    def _send(self, leads: bool) -> None:
        """All ranks iterate, since gathering a sharded weight takes all; the first one sends."""
        links = [server.link for server in self._servers.values() if leads and server.link]
        failure: RuntimeError | None = None
        for name, tensor in self._binding().weights():
            for link in links if failure is None else ():
                try:
                    link.send(name, tensor)
                except RuntimeError as error:
                    failure = error
        for link in links:
            link.finish()
        if failure is not None:
            raise failure

    async def _resume(self) -> None:
        held = f"{secrets.token_hex(4)}:{self.weight_version + 1}"
        for server in self._servers.values():
            await server.post("/reset_prefix_cache?reset_running_requests=true")
            await server.post("/update_weight_version", {"new_version": held})
            await server.post("/resume")
        self._held = held


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _share(mine: list[Any]) -> list[Any]:
    """The first process's facts, and the first error of any process; a collective."""
    everyone: list[Any] = [None] * _world_size()
    dist.all_gather_object(everyone, mine)
    errors: Iterable[Any] = (each[0] for each in everyone if each[0] is not None)
    return [next(iter(errors), None), everyone[0][1]]
