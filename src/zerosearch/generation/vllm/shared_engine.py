"""The engine that one training process, or several of them as peers, sample with.

vLLM's own engine sees requests by the rank of the peer that made them and the id they have there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from zerosearch.core.errors import ZeroSearchError
from zerosearch.generation.vllm.errors import build_error, step_error
from zerosearch.generation.vllm.llm_engine import EngineSettings, Sampled, VLLMEngine
from zerosearch.generation.vllm.peers import Peers
from zerosearch.generation.vllm.policy import VLLMPolicy


@dataclass(kw_only=True, slots=True)
class News:
    """What a process tells its peers before a step."""

    added: list[tuple[str, list[int], dict[str, Any]]] = field(default_factory=list)
    # request id, prompt, parameters of each
    aborted: list[str] = field(default_factory=list)  # request ids
    released: bool = False  # no more requests until the next sync


class SharedEngine:
    """Every method belongs to the thread that made it, and is called by all peers in step.

    Args:
        settings: of the engine.
        model_type: of the policy, for messages.
        peers: this process and those that run the engine with it.

    Raises:
        InputError: vLLM has no such model.
        InputError: it refuses the settings, or has too little memory; its own traceback says more.
    """

    def __init__(self, settings: EngineSettings, model_type: str, peers: Peers) -> None:
        self.failure: Exception | None = None  # after which the engine is of no use
        self.all_released = True
        self._peers = peers
        self._has_weights = False
        try:
            self._engine = VLLMEngine(settings)
        except ZeroSearchError:
            raise
        except (ValueError, TypeError, RuntimeError, torch.OutOfMemoryError) as error:
            raise build_error(error, settings, model_type) from error

    def load(self, policy: VLLMPolicy, version: int) -> None:
        """Take over the policy's present weights, or its adapter where that is sent alone.

        Raises:
            RunError: vLLM failed meanwhile; the engine is of no use any more.
        """
        try:
            if policy.lora_rank is None or not self._has_weights:
                self._engine.load(policy.weights(), version)
                self._has_weights = True
            if policy.lora_rank is not None:
                self._engine.load_adapter(*policy.adapter(), version)
        except Exception as error:
            self.failure = error  # half of the old weights, half of the new ones
            raise step_error(error) from error
        self.all_released = self._peers.size == 1  # others may have requests for it

    def step(self, news: News) -> list[Sampled]:
        """Cancelled requests out, new ones in, one token for every running one.

        Returns:
            This process's requests that are finished.

        Raises:
            RunError: vLLM failed; the engine is of no use any more.
        """
        try:
            everyone = self._peers.exchange(news)
            for rank, each in enumerate(everyone):
                self._engine.abort(_names(rank, each.aborted))
                for name, prompt_ids, parameters in each.added:
                    self._engine.add(f"{rank}/{name}", prompt_ids, parameters)
            finished = self._engine.step() if self._engine.is_busy else []
        except Exception as error:
            self.failure = error
            raise step_error(error) from error
        if self._peers.size > 1:
            self.all_released = all(each.released for each in everyone)
        return [_own(sampled) for sampled in finished if _rank_of(sampled) == self._peers.rank]

    def abort(self, names: Sequence[str]) -> None:
        """Forget requests at once, where no peer has to be told."""
        if self._peers.size == 1:
            self._engine.abort(_names(0, names))

    def sleep(self) -> None:
        """Give the GPU's memory back until the next load, where the settings say so."""
        self._engine.sleep()

    def shutdown(self) -> None:
        """End the engine."""
        self._engine.shutdown()


def _names(rank: int, names: Sequence[str]) -> list[str]:
    return [f"{rank}/{name}" for name in names]


def _rank_of(sampled: Sampled) -> int:
    return int(sampled.request_id.partition("/")[0])


def _own(sampled: Sampled) -> Sampled:
    """With the id that the request has in its own process."""
    return replace(sampled, request_id=sampled.request_id.partition("/")[2])
