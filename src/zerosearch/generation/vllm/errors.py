"""vLLM's errors, put in words that name this project's settings."""

from __future__ import annotations

import re

import torch

from zerosearch.core.errors import InputError
from zerosearch.generation.vllm.llm_engine import EngineSettings

_MAX_SHOWN_CHARS = 400
_MEMORY = re.compile(r"memory|KV cache", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(
    r"not supported for now|no vLLM implementation|not recognized|not compatible with vLLM",
    re.IGNORECASE,
)


def build_error(error: Exception, settings: EngineSettings, model_type: str) -> ValueError:
    """Why no engine could be built, and what to change; vLLM's own words are in its traceback."""
    said = first_words(error)
    if _is_out_of_memory(error):
        return ValueError(
            f"generator=vllm: not enough memory for the engine ({said}); change "
            f"generator.gpu_memory_utilization={settings.gpu_memory_utilization} (raise it for a "
            "larger KV cache, lower it if training holds the rest) or lower "
            f"generator.max_model_len={settings.max_model_len}"
        )
    if _UNKNOWN_MODEL.search(str(error)):
        return InputError(
            f"generator=vllm: vLLM has no model of type {model_type} ({said}); use "
            "generator=transformers"
        )
    return ValueError(
        f"generator=vllm: vLLM refuses the engine ({said}); correct generator.engine_args="
        f"{dict(settings.extra)} or the field that it names"
    )


def step_error(error: Exception) -> Exception:
    """An error of a running engine; a hint is added where memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return RuntimeError(
            f"generator=vllm: the GPU's memory is used up ({first_words(error)}); lower "
            "generator.gpu_memory_utilization or generator.max_model_len"
        )
    return RuntimeError(f"generator=vllm: the engine failed ({first_words(error)})")


def first_words(error: Exception) -> str:
    """What an error says, on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + " ..."


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or bool(_MEMORY.search(str(error)))
