"""Generator on vLLM servers, on other GPUs or hosts, that get the policy's weights at every sync.

A server that was started anew holds other weights: it is noticed by the version that the last sync
has left there, is given no requests, and gets the weights at the next sync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from zerosearch.clients.bounded_replies import MAX_REPLY_BYTES
from zerosearch.clients.endpoints import AllDown, CallFailure, EndpointPool
from zerosearch.core.errors import InputError, RunError
from zerosearch.core.ranges import Count, CountOrZero, Positive
from zerosearch.generation.generator import Completion, CompletionRequest
from zerosearch.generation.vllm.client import START, VLLMServer, sampled_of
from zerosearch.generation.vllm.completion import completion_of, room_for
from zerosearch.generation.vllm.llm_engine import Sampled, sampling_parameters
from zerosearch.generation.vllm.policy import VLLMPolicy
from zerosearch.generation.vllm.server_check import Needs, inspect
from zerosearch.generation.vllm.sync import ServerSync, Synced
from zerosearch.policy.sharding import DTYPES
from zerosearch.policy.source import PolicySource
from zerosearch.types import SearchError

_MAX_OUTAGE_S = 60.0


class VLLMServerGenerator:
    """Samples with vLLM servers, each request with the one that has the fewest.

    With several training processes, the first one sends the weights; all of them ask.

    Args:
        endpoints: base URLs of the servers.
        dtype: that the servers have to compute in; "auto" is the one that the policy computes in.
        max_retries: further attempts of a request, on another server where there is one.
        timeout_s: longest wait for one completion.
        sync_timeout_s: longest wait for a server while weights are sent.
        max_reply_bytes: most bytes of a reply, unpacked; a longer one counts as failed.

    Raises:
        InputError: no endpoint is given, or one is no plain http(s) URL.
    """

    own_weights = True

    def __init__(
        self,
        *,
        endpoints: Sequence[str],
        dtype: str = "auto",
        max_retries: CountOrZero = 2,
        timeout_s: Positive = 1800.0,
        sync_timeout_s: Positive = 600.0,
        max_reply_bytes: Count = MAX_REPLY_BYTES,
    ) -> None:
        if isinstance(endpoints, str) or not endpoints:
            raise InputError(
                f"generator.endpoints={endpoints!r}: give a list of servers, such as "
                f"[http://127.0.0.1:8100/v1]; {START}"
            )
        if dtype not in DTYPES:
            raise InputError(f"generator.dtype={dtype} is unknown: use one of {', '.join(DTYPES)}")
        if max_retries < 0:
            raise InputError(f"generator.max_retries={max_retries}: give 0 or more")
        for name, value in (("timeout_s", timeout_s), ("sync_timeout_s", sync_timeout_s)):
            if not value > 0:
                raise InputError(f"generator.{name}={value}: give seconds above 0")
        if max_reply_bytes < 1:
            raise InputError(f"generator.max_reply_bytes={max_reply_bytes}: give 1 or more")
        servers = [
            VLLMServer(each, sync_timeout_s=sync_timeout_s, max_reply_bytes=max_reply_bytes)
            for each in endpoints
        ]
        self.weight_version = 0
        self.prompt_tokens = 0  # of all finished requests
        self.cached_tokens = 0  # of those: found in a prefix cache, so not computed
        self._servers = {server.url: server for server in servers}
        self._max_retries = max_retries
        self._timeout_s = timeout_s
        self._dtype = dtype
        self._policy: VLLMPolicy | None = None
        self._sync_timeout_s = sync_timeout_s
        self._sync: ServerSync | None = None
        self._synced: Synced | None = None  # by the last sync
        self._pool = EndpointPool(
            list(self._servers), self._check_version, max_outage_s=_MAX_OUTAGE_S
        )

    async def check_policy(self, source: PolicySource, *, context_tokens: int) -> None:
        """Compare the servers with a policy before it is loaded; nothing of them is changed.

        The dtype in which the policy computes is known later: the first sync compares that.

        Raises:
            InputError: a server cannot be reached or was not made for the policy; names the
                endpoint and the remedy.
        """
        needs = Needs(
            config=source.load_config(),
            tokenizer=source.load_tokenizer(),
            context_tokens=context_tokens,
        )
        try:
            await asyncio.gather(*(inspect(each, needs) for each in self._servers.values()))
        except CallFailure as failure:
            raise InputError(f"generator=vllm_server: {failure}; {START}") from None
        except InputError as error:
            raise InputError(f"generator=vllm_server: {error}") from None

    def bind(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Say which policy samples; every sync compares the servers with it.

        A collective where there are several training processes.
        """
        self._policy = VLLMPolicy(model, tokenizer, dtype=self._dtype, lora="merged")
        servers = list(self._servers.values())
        self._sync = ServerSync(servers, self._policy, timeout_s=self._sync_timeout_s)
        self._synced = None

    async def generate(self, prompt_ids: list[int], request: CompletionRequest) -> Completion:
        """Sample one completion on one of the servers; see `Generator`.

        Raises:
            RunError: no server could; names the endpoint.
        """
        policy, synced = self._binding(), self._synced
        if synced is None:
            raise InputError(
                "generator=vllm_server: no weights yet; call sync_weights(policy) first"
            )
        limit = room_for(prompt_ids, request, synced.context, "--max-model-len of the server")
        parameters = sampling_parameters(request, limit, policy.tokens.eos_ids)
        vocabulary = policy.base.config.get_text_config().vocab_size
        read = partial(
            sampled_of, weight_version=self.weight_version, vocabulary=vocabulary, most_tokens=limit
        )
        try:
            sampled = await self._on_some_server(synced.model, prompt_ids, parameters, read)
        except (CallFailure, SearchError, ValueError) as error:
            raise RunError(f"generator=vllm_server: {error}") from None
        self.prompt_tokens += sampled.prompt_tokens
        self.cached_tokens += sampled.cached_tokens
        return completion_of(sampled, policy.tokens)

    async def sync_weights(self, policy: nn.Module) -> None:
        """Send the policy's present weights to every server and drop all KV of the old ones.

        A collective where there are several training processes. Requests in progress go on with
        the new weights.

        Raises:
            InputError: `policy` is not the bound module, or a server is not made for it.
            RunError: a server is lost; names the endpoint.
        """
        bound, sync = self._binding(), self._sync
        if sync is None or policy is not bound.model:
            raise InputError(
                f"sync_weights got a {type(policy).__name__} that is not the bound model; call "
                "bind() with it first"
            )
        self._synced = None
        self._synced = await sync.run(self.weight_version + 1)
        self.weight_version += 1

    async def release(self) -> None:
        """Make sure that everything since the sync was sampled from its weights.

        Raises:
            RunError: a server was started anew, or others have sent it weights; names it.
        """
        if self._synced is None:
            return
        try:
            await asyncio.gather(*map(self._check_version, self._servers))
        except CallFailure as failure:
            raise RunError(f"generator=vllm_server: {failure}") from None

    # -- requests ----------------------------------------------------------------------------

    def _binding(self) -> VLLMPolicy:
        if self._policy is None:
            raise InputError("generator: no model yet; call bind(model, tokenizer) first")
        return self._policy

    async def _on_some_server(
        self,
        model: str,
        prompt_ids: Sequence[int],
        parameters: dict[str, Any],
        read: Callable[..., Sampled],
    ) -> Sampled:
        tried: list[str] = []
        while True:
            try:
                async with self._pool.lease(tried) as url:
                    tried.append(url)
                    server = self._servers[url]
                    wait_s = self._timeout_s
                    return read(
                        await server.complete(model, prompt_ids, parameters, wait_s), url=url
                    )
            except AllDown:
                await self._pool.recovered()
            except CallFailure as failure:
                if failure.kind == "rejected" or len(tried) > self._max_retries:
                    raise

    async def _check_version(self, url: str) -> None:
        """Raise a `CallFailure` unless the server holds the present weights."""
        held = await self._servers[url].weight_version()
        wanted = self._synced and self._synced.held
        if held != wanted:
            reason = (
                f"it holds the weights {held!r} instead of {wanted!r}: it was started anew, or "
                "another run uses it; resume the run, which sends them again"
            )
            raise CallFailure(url, reason, kind="unreachable")
