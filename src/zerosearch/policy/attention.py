"""Which attention a policy is trained with, chosen by device.

On a GPU sequences share a row without padding. Padded, SDPA has to repeat keys and values for each
query head and cannot use its flash kernel, because of the mask. Loading, sampling and everything on
a CPU use SDPA: flex attention has no gradient there, and flash attention no kernel.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import huggingface_hub.constants
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_kernels_available

from zerosearch.core.errors import InputError
from zerosearch.policy.activation_memory import Shape
from zerosearch.policy.flex_attention import FLEX_ATTENTION, SMALLEST_HEAD, verify_flex
from zerosearch.policy.logprobs import packs_rightly
from zerosearch.policy.sharding import base_model, compute_device, compute_dtype

log = logging.getLogger(__name__)

# with the compute capability that they need; both have a backward pass
FLASH_KERNELS = (
    ("kernels-community/flash-attn3", (9, 0)),
    ("kernels-community/flash-attn2", (8, 0)),
)
_FLASH_NAME = re.compile(r"flash_attention_[234]|[^/\s]+/[^/\s]+")


def check_attention(name: str) -> None:
    """Refuse an unknown `model.attn_implementation`.

    Raises:
        InputError: names the field and what it takes.
    """
    known = ("auto", "sdpa", "eager", "flex_attention")
    if name not in known and not _FLASH_NAME.fullmatch(name):
        raise InputError(
            f"model.attn_implementation={name} is unknown: use one of {', '.join(known)}, "
            "flash_attention_2, flash_attention_3, or a kernel of the hub (owner/name)"
        )


def plain_attention(name: str | None) -> str:
    """What a model is loaded with and sampled from, whatever it is trained with."""
    return "eager" if name == "eager" else "sdpa"


def packs_on_gpus(name: str, model: nn.Module) -> bool:
    """Whether sequences will share rows on a GPU, as far as a model without weights tells.

    Args:
        name: `model.attn_implementation`.
        model: a causal LM or a wrapper of one, on any device.
    """
    too_small = Shape(base_model(model).config).head_size < SMALLEST_HEAD
    by_flex = name in ("auto", "flex_attention")
    return name not in ("sdpa", "eager") and not _caps_scores(model) and not (by_flex and too_small)


def use_training_attention(
    name: str, models: Sequence[nn.Module | None], device: torch.device
) -> None:
    """Set the attention that models of one kind are trained with; a collective where sharded.

    Args:
        name: `model.attn_implementation`. "auto" is SDPA on a CPU. On a GPU it is flash attention
            where the computation is in 16 bits and a kernel lies on this machine (nothing is
            fetched), else flex attention, else SDPA with padding, and the log says why.
        models: the policy, and where there are any its critic and its reference.
        device: where they are trained.

    Raises:
        InputError: what is asked for by name cannot be trained with.
    """
    if name in ("sdpa", "eager") or (name == "auto" and device.type == "cpu"):
        return
    given = [model for model in models if model is not None]
    dtype = compute_dtype(given[0])
    reasons = list(_obstacles(name, given[0], device, dtype))
    for candidate in () if reasons else _candidates(name, device, dtype):
        try:
            if candidate == FLEX_ATTENTION:
                verify_flex(Shape(base_model(given[0]).config), compute_device(given[0]), dtype)
            with _hub_offline() if name == "auto" else nullcontext():
                for model in given:
                    _set(base_model(model), candidate)
        except (ValueError, ImportError, OSError) as error:
            reasons.append(str(error))
            continue
        log.info("sequences are packed: model.attn_implementation=%s is %s", name, candidate)
        return
    why = "; ".join(reasons)
    if name != "auto":
        raise InputError(f"model.attn_implementation={name}: {why}; use auto")
    for model in given:
        _set(base_model(model), "sdpa")
    log.warning("sequences are padded, with sdpa, which is slower on a GPU: %s", why)


def _obstacles(
    name: str, model: nn.Module, device: torch.device, dtype: torch.dtype
) -> Iterator[str]:
    config = base_model(model).config.get_text_config()
    if device.type == "cpu":
        yield "it cannot be trained with on a CPU"
    elif _caps_scores(model):
        yield f"model_type={config.model_type} caps its scores, and is sampled by sdpa without caps"
    elif not packs_rightly(model):
        yield f"sequences of model_type={config.model_type} that share a row would see each other"
    elif _FLASH_NAME.fullmatch(name) and dtype.itemsize != 2:
        yield "flash attention computes in 16 bits only; set trainer.precision=bf16-mixed"


def _caps_scores(model: nn.Module) -> bool:
    config = base_model(model).config.get_text_config()
    return getattr(config, "attn_logit_softcapping", None) is not None


def _candidates(name: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    if name == "flex_attention":
        return [FLEX_ATTENTION]
    if name != "auto":
        return [name]
    flash = []
    if dtype.itemsize == 2 and is_kernels_available():
        capability = torch.cuda.get_device_capability(device)
        flash = [kernel for kernel, least in FLASH_KERNELS if capability >= least]
    return [*flash, FLEX_ATTENTION]


def _set(base: PreTrainedModel, name: str) -> None:
    base.set_attn_implementation(name)
    if base.config._attn_implementation != name:  # transformers has only warned
        raise InputError(f"{type(base).__name__} lets nobody choose its attention")


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Kernels come from local files alone: a default run must not depend on the network."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
