"""A sync with vLLM servers: all of them get the policy's weights, or the run is told why not.

Whatever goes wrong, the servers answer again afterwards, marked as holding nobody's weights, and
the next sync, of this run or of another one, starts from the beginning.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from zerosearch.clients.endpoints import CallFailure
from zerosearch.core.devices import device_thread
from zerosearch.core.distributed import gather_objects, object_group, rank
from zerosearch.core.errors import InputError, RunError, ZeroSearchError
from zerosearch.generation.vllm.client import START, VLLMServer
from zerosearch.generation.vllm.policy import VLLMPolicy
from zerosearch.generation.vllm.server_check import Needs, inspect

T = TypeVar("T")
INCOMPLETE = "incomplete"  # version of a server whose last sync failed

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class Synced:
    """What every training process has to know after a sync."""

    model: str  # the name by which the servers are asked for it
    context: int  # tokens of prompt and completion
    held: str  # version that servers with the present weights report


class ServerSync:
    """Sends weights from the first training process to every server.

    All processes make it at the same time, in their main threads.

    Args:
        servers: all of them.
        policy: whose weights are sent.
        timeout_s: longest wait for a server while weights are sent.
    """

    def __init__(
        self, servers: Sequence[VLLMServer], policy: VLLMPolicy, *, timeout_s: float
    ) -> None:
        self._servers = servers
        self._policy = policy
        self._timeout_s = timeout_s
        self._paused: list[VLLMServer] = []
        self._thread = device_thread("weights", policy.device)
        object_group()  # cannot be made in that thread

    async def run(self, number: int) -> Synced:
        """One sync; a collective where there are several training processes.

        Args:
            number: of the sync.

        Raises:
            InputError: a server is not made for the policy; names the endpoint and the remedy.
            RunError: a server is lost; names the endpoint.
        """
        leads = rank() == 0
        try:
            model, context = await self._agree(self._prepare() if leads else None)
            await self._agree(self._transfer(leads))
            held = await self._agree(self._resume(number) if leads else None)
        except BaseException:
            await self._let_go()
            raise
        return Synced(model=model, context=context, held=held)

    async def _agree(self, work: Coroutine[Any, Any, T] | None) -> T:
        """Wait for this process's work and the others'; an error of one is an error of all.

        Returns:
            What the first process's work has returned.
        """
        result: T | None = None
        error: Exception | None = None
        try:
            if work is not None:
                result = await work
        except Exception as raised:
            error = raised
        said = error and (isinstance(error, InputError), str(error) or repr(error))
        mine: tuple[Any, Any] = (said, result)
        everyone = await self._on_thread(gather_objects, mine)
        if error and not isinstance(error, ZeroSearchError):
            raise error  # NCCL's, or a defect: shown with its traceback
        for failed, _ in everyone:
            if failed:
                is_users, text = failed
                kind = InputError if is_users else RunError
                raise kind(f"generator=vllm_server: {text}") from error
        return everyone[0][1]

    async def _prepare(self) -> tuple[str, int]:
        """Compare all servers with the policy, then stop them and connect."""
        policy = self._policy
        needs = Needs(
            config=policy.base.config, tokenizer=policy.tokens.tokenizer, dtype=policy.dtype
        )
        try:
            served = await asyncio.gather(*(inspect(server, needs) for server in self._servers))
        except CallFailure as failure:
            hint = f"; {START}" if failure.kind == "rejected" or "HTTP" in failure.reason else ""
            raise RunError(f"{failure}{hint}") from None
        for server, facts in zip(self._servers, served, strict=True):
            self._paused.append(server)
            await server.post("/pause?mode=keep")
            await server.connect(facts.workers, policy.device, self._thread)
        contexts = [facts.context for facts in served]
        return served[0].model, min([*contexts, policy.context or contexts[0]])

    async def _transfer(self, leads: bool) -> None:
        """Stream the weights; the servers take them over meanwhile."""
        servers = self._servers if leads else ()
        sent, *received = await asyncio.gather(
            self._on_thread(_send, self._policy, servers),
            *(server.rpc("receive_policy", [], self._timeout_s) for server in servers),
            return_exceptions=True,
        )
        for outcome in (*received, sent):  # a server that is gone says so itself
            if isinstance(outcome, BaseException):
                raise outcome

    async def _resume(self, number: int) -> str:
        held = f"{secrets.token_hex(4)}:{number}"
        for server in self._servers:
            await server.post("/reset_prefix_cache?reset_running_requests=true")
            await server.post("/update_weight_version", {"new_version": held})
            await server.post("/resume")
        self._paused.clear()
        return held

    async def _on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    async def _let_go(self) -> None:
        """After a failure: let the servers answer again, as far as they can be reached."""
        while self._paused:
            server = self._paused.pop()
            server.link = None  # the ends may have counted differently
            try:
                await server.post("/update_weight_version", {"new_version": INCOMPLETE})
                await server.post("/resume")
            except CallFailure as failure:
                log.warning("%s; it answers no requests before its next sync", failure)


def _send(policy: VLLMPolicy, servers: Sequence[VLLMServer]) -> None:
    """All ranks iterate, since gathering a sharded weight takes all; the first one sends."""
    failure: RuntimeError | None = None
    links = [(server.url, server.link) for server in servers if server.link is not None]
    try:
        for name, tensor in policy.weights():
            for url, link in links if failure is None else ():
                try:
                    link.send(name, tensor)
                except RuntimeError as error:
                    failure = RunError(f"{url}: the weights could not be sent ({error})")
                    failure.__cause__ = error  # NCCL's or gloo's: its traceback is kept
                    break
    finally:
        for _, link in links:
            link.finish()  # after an error, too: the workers wait for another weight
    if failure is not None:
        raise failure
