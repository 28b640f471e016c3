"""A policy's weights on their way to an engine in another process.

Rank 0 is the policy, the others are the workers of one server. Tensors are broadcast one at a time
over NCCL between GPUs, over gloo between CPUs; what the next one is goes through the store that
has brought the processes together.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

POLICY_RANK = 0
_END: dict[str, Any] = {}


class WeightLink:
    """One end of the connection; made at all ends at the same time.

    Args:
        store: see `hosted_store` and `joined_store`.
        rank: 0 for the policy.
        size: number of ends.
        device: of this end: its GPU, or the CPU at all ends.
        address: of this machine, as the others see it.
        timeout_s: after which an end that waits for another gives up.
    """

    def __init__(
        self,
        store: dist.Store,
        *,
        rank: int,
        size: int,
        device: torch.device,
        address: str,
        timeout_s: float,
    ) -> None:
        self._store = store
        self._sent = 0
        self._device = device
        make = _nccl_group if device.type == "cuda" else _gloo_group
        self._group = make(store, rank, size, address, timedelta(seconds=timeout_s))

    def send(self, name: str, tensor: Tensor) -> None:
        """Send one weight to all workers."""
        tensor = tensor.detach().to(self._device).contiguous()
        self._announce(
            {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": tensor.shape}
        )
        self._broadcast(tensor)

    def finish(self) -> None:
        """Say that no weight follows."""
        self._announce(_END)

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that the policy sends, up to its `finish`."""
        while header := self._next_header():
            tensor = torch.empty(
                header["shape"], dtype=getattr(torch, header["dtype"]), device=self._device
            )
            self._broadcast(tensor)
            yield header["name"], tensor

    def _announce(self, header: dict[str, Any]) -> None:
        self._store.set(f"header/{self._sent}", json.dumps(header))
        self._sent += 1

    def _next_header(self) -> dict[str, Any]:
        key = f"header/{self._sent}"
        header = json.loads(self._store.get(key))
        self._sent += 1
        return header

    def _broadcast(self, tensor: Tensor) -> None:
        self._group.broadcast([tensor], _from_policy()).wait()


def hosted_store(address: str, timeout_s: float) -> tuple[dist.TCPStore, int]:
    """The policy's store, listening at one address of this machine only, and its port."""
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )
    return store, port


def joined_store(address: str, port: int, timeout_s: float) -> dist.TCPStore:
    """A worker's way to the policy's store."""
    return dist.TCPStore(
        address,
        port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )


def own_address(host: str, port: int) -> str:
    """The address of this machine that another one sees; nothing is sent."""
    family, _, _, _, peer = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(peer)
        return probe.getsockname()[0]


# Process groups apart from the default one, which belongs to training or to vLLM.


def _nccl_group(store: dist.Store, rank: int, size: int, address: str, timeout: timedelta) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, rank, size, options)


def _gloo_group(store: dist.Store, rank: int, size: int, address: str, timeout: timedelta) -> Any:
    options: Any = dist.ProcessGroupGloo._Options()  # pyright: ignore
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, size, options)


def _from_policy() -> Any:
    options = dist.BroadcastOptions()
    options.rootRank = POLICY_RANK
    return options
