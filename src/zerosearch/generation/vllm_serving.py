"""What to run to serve a policy to `VLLMServerGenerator`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zerosearch.generation.vllm_adapter import (
    CPU_BLOCK_TOKENS,
    CPU_KV_CACHE_BYTES,
    WORKER_EXTENSION,
    check_installed,
)
from zerosearch.policy.source import PolicySource
from zerosearch.simulator.serving import ServerSettings


def generator_server(
    policy: PolicySource, *, folder: str, extra_args: Sequence[Any] = (), **settings: Any
) -> ServerSettings:
    """Settings of servers whose weights come from the policy that is trained.

    Args:
        policy: gives the server its config and tokenizer; its weights are not loaded.
        folder: takes them.
        extra_args: to vLLM, as they are.
        settings: further fields of `ServerSettings`.

    Raises:
        ValueError: vLLM is missing or of an untried version, the policy cannot be had, or a
            setting is out of range.
    """
    check_installed()
    policy.check()
    config = policy.load_config()
    shutil.rmtree(folder, ignore_errors=True)  # an earlier server's, perhaps of another model
    config.save_pretrained(folder)
    policy.load_tokenizer().save_pretrained(folder)
    if settings.get("dtype", "auto") == "auto" and policy.dtype != "auto":
        settings["dtype"] = policy.dtype
    return ServerSettings(
        model=str(Path(folder).absolute()),
        served_name="policy",
        node="server",
        extra_args=["--load-format", "dummy", *_flags(), *extra_args],
        # the routes that pause and call the workers; their threads are left where they are
        environment={"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        **settings,
    )


def _flags() -> list[str]:
    """Flags without which a server cannot take part: exact log-probs and our weights."""
    flags = ["--worker-extension-cls", WORKER_EXTENSION, "--logprobs-mode", "processed_logprobs"]
    flags += ["--generation-config", "vllm", "--enable-prompt-tokens-details"]
    if not torch.cuda.is_available():
        flags += ["--enforce-eager", "--no-enable-chunked-prefill"]
        flags += ["--block-size", str(CPU_BLOCK_TOKENS)]
        flags += ["--kv-cache-memory-bytes", str(CPU_KV_CACHE_BYTES)]
    return flags
