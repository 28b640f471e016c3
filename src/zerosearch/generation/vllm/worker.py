"""What this project adds to vLLM's workers: taking over a policy's weights.

vLLM makes `PolicyWeights` a base of its worker class (`--worker-extension-cls`) and lets its
methods be called by name, from other processes with arguments of JSON only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zerosearch.generation.vllm import llm_engine
from zerosearch.generation.vllm.weight_link import WeightLink, joined_store, own_address

_REACH_TIMEOUT_S = 20.0  # less than the policy waits for the answer


class PolicyWeights:
    """Methods of a worker."""

    policy_link: WeightLink | None = None
    policy_link_name: str | None = None  # a server that was started anew has none

    def load_policy(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Replace all weights; in the policy's own process."""
        llm_engine.load_weights(self, weights)

    def load_policy_adapter(self, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
        """Replace the LoRA adapter; in the policy's own process."""
        llm_engine.load_adapter(self, weights, config)

    def describe_policy(self, fields: list[str]) -> dict[str, Any]:
        """What the policy's process has to know of this worker, and fields of its model."""
        return llm_engine.describe(self, fields) | {"link": self.policy_link_name}

    def reach_policy(self, address: str, port: int) -> None:
        """Raise where the policy's process cannot be reached from here."""
        joined_store(address, port, _REACH_TIMEOUT_S)

    def join_policy(
        self, name: str, address: str, port: int, size: int, device_type: str, timeout_s: float
    ) -> None:
        """Connect with the policy's process, which does the same at its end meanwhile.

        Args:
            name: of the link.
            address: of the policy's process.
            port: of its store.
            size: number of ends.
            device_type: of the policy's end; weights come from a CPU to CPUs.
            timeout_s: see `WeightLink`.
        """
        self.policy_link = WeightLink(
            joined_store(address, port, timeout_s),
            rank=1 + llm_engine.describe(self, [])["rank"],
            size=size,
            device=llm_engine.device_of(self) if device_type == "cuda" else torch.device("cpu"),
            address=own_address(address, port),
            timeout_s=timeout_s,
        )
        self.policy_link_name = name

    def receive_policy(self) -> None:
        """Replace all weights by those that the policy's process sends meanwhile."""
        assert self.policy_link is not None, "join_policy comes first"
        weights = self.policy_link.receive()
        try:
            llm_engine.load_weights(self, weights)
        finally:
            for _ in weights:  # after an error too: the sender does not know of it yet
                pass
