"""What to run to serve a policy to `VLLMServerGenerator`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from zerosearch.core.ranges import Count, Port, Positive, ShareAboveZero
from zerosearch.generation.vllm.llm_engine import (
    CPU_BLOCK_TOKENS,
    CPU_KV_CACHE_BYTES,
    WORKER_EXTENSION,
    check_installed,
)
from zerosearch.policy.architecture import check_architecture
from zerosearch.policy.source import PolicySource
from zerosearch.serving.settings import ServerSettings


def generator_server(
    policy: PolicySource,
    *,
    folder: str,
    host: str = "127.0.0.1",
    port: Port | None = 8100,
    gpus: list[int] | None = None,
    tensor_parallel: Count = 1,
    max_model_len: Count = 4096,
    gpu_memory_utilization: ShareAboveZero = 0.9,
    dtype: str = "auto",
    ready_timeout_s: Positive = 600.0,
    extra_args: Sequence[str | float] = (),
) -> ServerSettings:
    """Settings of servers whose weights come from the policy that is trained.

    Args:
        policy: gives the server its config and tokenizer; its weights are not loaded.
        folder: takes them.
        host: see `ServerSettings`, as for the others up to `ready_timeout_s`.
        port: of the first server.
        gpus: counted as trainer.devices does.
        tensor_parallel: GPUs per server.
        max_model_len: tokens of prompt and completion.
        gpu_memory_utilization: share of the GPU's memory.
        dtype: "auto" is what is trained in by default: bfloat16 on GPUs, the policy's on CPUs.
        ready_timeout_s: longest wait for a server.
        extra_args: to vLLM, as they are.

    Raises:
        InputError: vLLM is missing or of an untried version, the policy cannot be had, or a
            setting is out of range.
    """
    check_installed()
    policy.check()
    # of the files, as in training: `model.architecture` may leave out how positions are rotated
    config = policy.load_config() if policy.random_init else policy.load_file_configs()[0]
    check_architecture(policy.architecture, config)
    shutil.rmtree(folder, ignore_errors=True)  # an earlier server's, perhaps of another model
    config.save_pretrained(folder)
    policy.load_tokenizer().save_pretrained(folder)
    return ServerSettings(
        model=str(Path(folder).absolute()),
        served_name="policy",
        node="server",
        extra_args=["--load-format", "dummy", *_flags(), *extra_args],
        # the routes that pause and call the workers; their threads are left where they are
        environment={"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        host=host,
        port=port,
        gpus=gpus,
        tensor_parallel=tensor_parallel,
        max_model_len=max_model_len,
        gpu_memory_utilization=gpu_memory_utilization,
        dtype=_default_dtype(policy) if dtype == "auto" else dtype,
        ready_timeout_s=ready_timeout_s,
    )


def _default_dtype(policy: PolicySource) -> str:
    return "bfloat16" if torch.cuda.is_available() else policy.dtype


def _flags() -> list[str]:
    """Flags without which a server cannot take part: exact log-probs and our weights."""
    flags = ["--worker-extension-cls", WORKER_EXTENSION, "--logprobs-mode", "processed_logprobs"]
    flags += ["--enable-prompt-tokens-details"]
    if not torch.cuda.is_available():
        flags += ["--enforce-eager", "--no-enable-chunked-prefill"]
        flags += ["--block-size", str(CPU_BLOCK_TOKENS)]
        flags += ["--kv-cache-memory-bytes", str(CPU_KV_CACHE_BYTES)]
    return flags
