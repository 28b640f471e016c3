"""Generator on vLLM's engine in this process, beside the policy that is trained.

The engine belongs to one thread. A task on the event loop, the pump, hands it the requests that
have arrived and lets it sample one token for each; meanwhile the loop goes on with the searches of
other trajectories. Unlike with the transformers generator, batches depend on how long searches
take, and with them the last bits of log-probs.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from zerosearch.core.devices import await_device, device_thread
from zerosearch.core.errors import InputError, RunError
from zerosearch.core.ranges import Count, ShareAboveZero, check_least
from zerosearch.generation.generator import Completion, CompletionRequest
from zerosearch.generation.vllm.completion import completion_of, room_for
from zerosearch.generation.vllm.llm_engine import (
    EngineSettings,
    Sampled,
    check_installed,
    sampling_parameters,
)
from zerosearch.generation.vllm.peers import Peers
from zerosearch.generation.vllm.policy import LoraSync, VLLMPolicy, adapter_rank
from zerosearch.generation.vllm.shared_engine import News, SharedEngine
from zerosearch.policy.sharding import DTYPES
from zerosearch.policy.source import PolicySource

T = TypeVar("T")
_IDLE_S = 0.002


@dataclass(kw_only=True, slots=True, eq=False)
class _PendingRequest:
    """A request and its caller."""

    request_id: str
    prompt_ids: list[int]
    parameters: dict[str, Any]
    future: asyncio.Future[Sampled]


class VLLMGenerator:
    """Samples with vLLM, whose weights are replaced at every sync.

    Args:
        max_model_len: tokens of prompt and completion; None: the model's context.
        gpu_memory_utilization: share of the GPU's memory for weights and KV cache; the rest is for
            training. Without effect on the CPU.
        tensor_parallel_size: training processes that share one engine; 1: each has its own.
        dtype: of the engine's weights; "auto" is the one that the policy computes in.
        lora_sync: "merged" sends the weights with adapters merged in; "adapter" the adapters alone.
        sleep_while_training: give weights and KV cache back between rollouts (GPU only).
        engine_args: further arguments of vLLM's EngineArgs, e.g. {max_num_seqs: 64}.

    Raises:
        InputError: vLLM is missing or of an untried version, or a setting is out of range.
    """

    own_weights = True

    def __init__(
        self,
        *,
        max_model_len: Count | None = None,
        gpu_memory_utilization: ShareAboveZero = 0.4,
        tensor_parallel_size: Count = 1,
        dtype: str = "auto",
        lora_sync: LoraSync = "merged",
        sleep_while_training: bool = True,
        engine_args: Mapping[str, Any] | None = None,
    ) -> None:
        if max_model_len is not None and max_model_len < 2:
            raise InputError(f"generator.max_model_len={max_model_len}: give 2 or more, or null")
        if not 0 < gpu_memory_utilization <= 1:
            raise InputError(
                f"generator.gpu_memory_utilization={gpu_memory_utilization}: give a share of the "
                "GPU's memory, above 0 and at most 1"
            )
        check_least("generator", "tensor_parallel_size", tensor_parallel_size, 1)
        if dtype not in DTYPES:
            raise InputError(f"generator.dtype={dtype} is unknown: use one of {', '.join(DTYPES)}")
        if lora_sync not in ("merged", "adapter"):
            raise InputError(f"generator.lora_sync={lora_sync} is unknown: use merged or adapter")
        check_installed()
        self.weight_version = 0
        self.prompt_tokens = 0  # of all finished requests
        self.cached_tokens = 0  # of those: found in the prefix cache, so not computed
        self._max_model_len = max_model_len
        self._gpu_memory_utilization = gpu_memory_utilization
        self._tensor_parallel_size = tensor_parallel_size
        self._dtype = dtype
        self._lora: LoraSync = lora_sync
        self._sleep_while_training = sleep_while_training
        self._extra = dict(engine_args or {})
        self._policy: VLLMPolicy | None = None
        self._engine: SharedEngine | None = None
        self._peers: Peers | None = None
        self._released = True  # whether this process has no more requests until the next sync
        self._thread: Executor  # of the engine, on the policy's device; made by `bind`
        self._arrivals: list[_PendingRequest] = []
        self._running: dict[str, _PendingRequest] = {}
        self._numbers = itertools.count()
        self._pump: asyncio.Task[None] | None = None

    async def check_policy(self, source: PolicySource, *, context_tokens: int) -> None:
        """Compare the settings with a policy before it is loaded.

        Raises:
            InputError: an episode may grow longer than the engine's context, or `lora_sync` asks
                for adapters that vLLM cannot read or that the policy has not.
        """
        if self._max_model_len is not None and self._max_model_len < context_tokens:
            raise InputError(
                f"generator.max_model_len={self._max_model_len} is less than "
                f"episode.max_context_tokens={context_tokens}: raise it, or lower that"
            )
        if self._lora == "adapter":
            adapter_rank(source.lora)

    def bind(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Say which policy samples; its engine is built at the first sync.

        Args:
            model: causal LM (a PEFT wrapper too), plain or sharded, on its final device.
            tokenizer: the one that made the prompts.

        Raises:
            InputError: see `VLLMPolicy`; or `max_model_len` is more than the model's context.
        """
        if self._pump is not None:
            raise InputError("generator.bind: requests are running; bind before or after a rollout")
        policy = VLLMPolicy(model, tokenizer, dtype=self._dtype, lora=self._lora)
        if policy.context and self._max_model_len and self._max_model_len > policy.context:
            raise InputError(
                f"generator.max_model_len={self._max_model_len} is more than the policy's context "
                f"of {policy.context} tokens: lower it, and episode.max_context_tokens with it"
            )
        self.close()
        self._thread = device_thread("vllm", policy.device)
        self._policy = policy
        self._peers = self._peers or Peers(self._tensor_parallel_size)

    async def generate(self, prompt_ids: list[int], request: CompletionRequest) -> Completion:
        """Sample one completion together with whatever else is running; see `Generator`."""
        policy = self._binding()
        if self._engine is None:
            raise InputError("generator=vllm: no weights yet; call sync_weights(policy) first")
        self._check_usable(self._engine)
        limit = room_for(prompt_ids, request, self._context(policy), "generator.max_model_len")
        pending = _PendingRequest(
            request_id=str(next(self._numbers)),
            prompt_ids=list(prompt_ids),
            parameters=sampling_parameters(request, limit, policy.tokens.eos_ids),
            future=asyncio.get_running_loop().create_future(),
        )
        self._arrivals.append(pending)
        self._start_pump()
        sampled = await pending.future
        self.prompt_tokens += sampled.prompt_tokens
        self.cached_tokens += sampled.cached_tokens
        return completion_of(sampled, policy.tokens)

    async def sync_weights(self, policy: nn.Module) -> None:
        """Stream the policy's present weights into the engine and drop all KV of the old ones.

        Under FSDP2 a collective. Requests that are running go on with the new weights.

        Raises:
            InputError: `policy` is not the bound module, or vLLM refuses it.
        """
        if policy is not self._binding().model:
            raise InputError(
                f"sync_weights got a {type(policy).__name__} that is not the bound model; call "
                "bind() with it first"
            )
        if self._engine is not None:
            self._check_usable(self._engine)
        await self._on_thread(self._load, self.weight_version + 1)
        self.weight_version += 1
        if self._tensor_parallel_size > 1:  # peers may have requests although this process has none
            self._released = False
            self._start_pump()

    async def release(self) -> None:
        """Give the GPU's memory back until the next sync, where `sleep_while_training`.

        With an engine for several processes it returns when all of them have come here.
        """
        self._released = True
        if self._tensor_parallel_size > 1 and self._pump is not None:
            await self._pump
        if self._engine is not None:
            await self._on_thread(self._engine.sleep)

    def close(self) -> None:
        """End the engine; `bind` starts anew."""
        if self._engine is not None:
            self._thread.submit(self._engine.shutdown).result()
        self._engine = None

    # -- requests ----------------------------------------------------------------------------

    def _binding(self) -> VLLMPolicy:
        if self._policy is None:
            raise InputError("generator: no model yet; call bind(model, tokenizer) first")
        return self._policy

    def _check_usable(self, engine: SharedEngine) -> None:
        if engine.failure is not None:
            raise RunError(
                f"generator=vllm: the engine failed before ({engine.failure}); bind it anew, or "
                "resume the run"
            ) from engine.failure

    def _context(self, policy: VLLMPolicy) -> int | None:
        return self._max_model_len or policy.context

    # -- the pump, on the event loop ---------------------------------------------------------

    def _start_pump(self) -> None:
        if self._pump is None:
            self._pump = asyncio.create_task(self._run(), name="generator")

    async def _run(self) -> None:
        """Ends when nothing waits or runs, and leaves no state of its loop behind."""
        try:
            while self._arrivals or self._running or self._peers_go_on():
                # Who was woken by the last step may submit; with nothing to do, do it slowly.
                await asyncio.sleep(0 if self._arrivals or self._running else _IDLE_S)
                new, self._arrivals = self._arrivals, []
                self._running |= {request.request_id: request for request in new}
                gone = [name for name, each in self._running.items() if each.future.done()]
                for name in gone:
                    del self._running[name]
                for sampled in await self._on_thread(self._step, new, gone):
                    request = self._running.pop(sampled.request_id, None)
                    if request is not None and not request.future.done():
                        request.future.set_result(sampled)
        except Exception as error:
            for request in [*self._arrivals, *self._running.values()]:
                if not request.future.done():
                    request.future.set_exception(error)
        finally:
            left = [*self._arrivals, *self._running.values()]
            for request in left:
                request.future.cancel()
            if left and self._engine is not None:
                self._thread.submit(self._engine.abort, [each.request_id for each in left])
            self._arrivals.clear()
            self._running.clear()
            self._pump = None

    def _peers_go_on(self) -> bool:
        return self._engine is not None and not self._engine.all_released

    async def _on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    # -- on the engine's thread --------------------------------------------------------------

    def _step(self, new: list[_PendingRequest], gone: list[str]) -> list[Sampled]:
        assert self._engine is not None
        kept = [each for each in new if each.request_id not in gone]
        added = [(each.request_id, each.prompt_ids, each.parameters) for each in kept]
        return self._engine.step(News(added=added, aborted=gone, released=self._released))

    def _load(self, version: int) -> None:
        policy = self._binding()
        if self._engine is None:
            self._engine = self._build(policy)
        await_device(policy.device)  # the last update of the weights
        self._engine.load(policy, version)
        await_device(policy.device)  # before the next one

    def _build(self, policy: VLLMPolicy) -> SharedEngine:
        assert self._peers is not None, "made by bind"
        settings = EngineSettings(
            folder=str(policy.folder),
            dtype=str(policy.dtype).removeprefix("torch."),
            device=policy.device,
            max_model_len=self._context(policy) or 4096,
            gpu_memory_utilization=self._gpu_memory_utilization,
            tensor_parallel_size=self._tensor_parallel_size,
            lora_rank=policy.lora_rank,
            sleep_mode=self._sleep_while_training and policy.device.type == "cuda",
            extra=self._extra,
        )
        return SharedEngine(settings, policy.base.config.model_type, self._peers)
