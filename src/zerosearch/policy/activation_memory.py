"""Bytes of activations, logits and KV cache of a dense decoder, counted tensor by tensor.

The decoder is that of Llama and Qwen: RMSNorm, grouped-query attention by SDPA with a padding mask,
SwiGLU. The way of counting is that of Korthikanti et al. (arXiv 2205.05198, sections 4 and 5), with
this decoder's tensors and without dropout. Other families are approximated by their sizes.

Legend: h hidden size, f size of the MLP, a = heads x head size, c bytes of a number.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

# of a chunk's logits in float32 at the peak of its backward pass: the logits, their softmax, the
# gradients of both, and one product of them
LOGIT_COPIES = 5


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


def kv_bytes_per_token(shape: Shape, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * dtype.itemsize


def layer_bytes(shape: Shape, tokens: int, longest: int, dtype: torch.dtype) -> int:
    """What one decoder layer saves for its backward pass.

    Two RMSNorms: input in float32 (4h), its normalised form and the output (2ch), and the norms.
    Attention: queries, keys and values repeated to all heads, output (4ca), log-sum-exp, and the
    padding mask as numbers. MLP: gate, its SiLU, up, and their product (4cf).

    Args:
        shape: of the model.
        tokens: of the micro-batch, padding included.
        longest: tokens of a row.
        dtype: of the computation.
    """
    c = dtype.itemsize
    norms = 2 * ((4 + 2 * c) * shape.hidden + 4)
    attention = 4 * c * shape.heads * shape.head_size + 4 * shape.heads + c * longest
    return tokens * (norms + attention + 4 * c * shape.mlp)


def kept_bytes(
    shape: Shape, tokens: int, longest: int, dtype: torch.dtype, *, checkpointing: bool
) -> int:
    """Activations between the forward and the backward pass.

    Args:
        shape: of the model.
        tokens: of the micro-batch, padding included.
        longest: tokens of a row.
        dtype: of the computation.
        checkpointing: each layer keeps its input alone and is computed again.
    """
    final_norm = tokens * (4 + dtype.itemsize) * shape.hidden
    if checkpointing:
        return tokens * dtype.itemsize * shape.hidden * shape.layers + final_norm
    return layer_bytes(shape, tokens, longest, dtype) * shape.layers + final_norm


def layer_backward_bytes(
    shape: Shape, tokens: int, longest: int, dtype: torch.dtype, *, checkpointing: bool
) -> int:
    """What one layer's backward pass needs beside what was kept: gradients of gate and up (2cf).

    Args: as of `kept_bytes`.
    """
    again = layer_bytes(shape, tokens, longest, dtype) if checkpointing else 0
    return again + tokens * 2 * dtype.itemsize * shape.mlp


def logits_bytes(shape: Shape, rows: int) -> int:
    """The peak of one chunk of logits, see `zerosearch.policy.logprobs.token_logprobs`."""
    return rows * shape.vocabulary * 4 * LOGIT_COPIES
