"""Bytes of activations, logits and KV cache of a dense decoder, counted tensor by tensor.

The decoder is that of Llama and Qwen: RMSNorm, grouped-query attention, SwiGLU. The way of counting
is that of Korthikanti et al. (arXiv 2205.05198, sections 4 and 5), with this decoder's tensors and
without dropout. Other families are approximated by their sizes.

Legend: h hidden size, f size of the MLP, a = heads x head size, k = key heads x head size, c bytes
of a number that is computed with, r of one between layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

# of a chunk's logits in float32 at the peak of its backward pass: the logits, their softmax, the
# gradients of both, and one product of them
LOGIT_COPIES = 5
MOST_TOKENS = 16_384  # of a micro-batch whose size nobody has set; more do not make a GPU faster


class Shape:
    """The sizes of a decoder-only model, under one name whatever its family."""

    def __init__(self, config: PretrainedConfig) -> None:
        text: Any = config.get_text_config()
        self.hidden: int = text.hidden_size
        self.layers: int = text.num_hidden_layers
        self.heads: int = text.num_attention_heads
        self.kv_heads: int = getattr(text, "num_key_value_heads", None) or self.heads
        self.head_size: int = getattr(text, "head_dim", None) or self.hidden // self.heads
        self.mlp: int = getattr(text, "intermediate_size", None) or 4 * self.hidden
        self.vocabulary: int = text.vocab_size


@dataclass(kw_only=True, slots=True, frozen=True)
class Pass:
    """A micro-batch on its way through a decoder."""

    tokens: int  # padding included
    longest: int  # of a row
    dtype: torch.dtype  # that matrices are multiplied in
    residual: torch.dtype  # between layers; under autocast that of the weights
    packed: bool  # sequences share a row, under flex or flash attention; else padded, by SDPA


def kv_bytes_per_token(shape: Shape, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * dtype.itemsize


def layer_bytes(shape: Shape, given: Pass) -> int:
    """What one decoder layer saves for its backward pass.

    Two RMSNorms: input in float32 (4h), its normalised form (rh), the norm (4), and what the
    products after it read (ch; under autocast each of q, k, v, gate and up casts its own).
    Attention: queries and output (2ca), log-sum-exp, keys and values (2ck). Padded, SDPA repeats
    the latter for all heads (2ca), and its mask is numbers. MLP: gate, its SiLU, up, and their
    product (4cf).
    """
    c, r = given.dtype.itemsize, given.residual.itemsize
    read = 2 if given.dtype == given.residual else 5
    norms = 2 * ((4 + r) * shape.hidden + 4) + read * c * shape.hidden
    keys = shape.kv_heads if given.packed else shape.heads
    attention = 2 * c * (shape.heads + keys) * shape.head_size + 4 * shape.heads
    mask = 0 if given.packed else c * given.longest
    return given.tokens * (norms + attention + mask + 4 * c * shape.mlp)


def kept_bytes(shape: Shape, given: Pass, *, checkpointing: bool) -> int:
    """Activations between the forward and the backward pass.

    Args:
        shape: of the model.
        given: the micro-batch.
        checkpointing: each layer keeps its input alone and is computed again.
    """
    r = given.residual.itemsize
    final_norm = given.tokens * (4 + r) * shape.hidden
    if checkpointing:
        return given.tokens * r * shape.hidden * shape.layers + final_norm
    return layer_bytes(shape, given) * shape.layers + final_norm


def layer_backward_bytes(shape: Shape, given: Pass, *, checkpointing: bool) -> int:
    """What one layer's backward pass needs beside what was kept: gradients of gate and up (2cf).

    Args: as of `kept_bytes`.
    """
    again = layer_bytes(shape, given) if checkpointing else 0
    return again + given.tokens * 2 * given.dtype.itemsize * shape.mlp


def logits_bytes(shape: Shape, rows: int) -> int:
    """The peak of one chunk of logits, see `zerosearch.policy.logprobs.token_logprobs`."""
    return rows * shape.vocabulary * 4 * LOGIT_COPIES
