"""Compiled flex attention over sequences that share a row, as an attention of transformers.

transformers' own "flex_attention" is not used. It repeats keys and values wherever the number of
query heads is no power of two (12, 14, 28 and 40 heads of Qwen2.5), compiles the making of its mask
again for new shapes, and leaves queries in float32 beside bfloat16 values under autocast, which the
backward pass refuses.

A kernel is compiled for one length, and then once more for any length, with and without gradient;
`padded_length` keeps lengths at multiples of a block, so that nothing depends on what is left over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.config
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    add_offsets_to_mask_function,
    and_masks,
    causal_mask_function,
    packed_sequence_mask_function,
    padding_mask_function,
    prepare_padding_mask,
)

from zerosearch.core.errors import InputError
from zerosearch.policy.activation_memory import Shape

FLEX_ATTENTION = "zerosearch_flex_attention"
BLOCK = 128  # tokens; flex attention skips blocks of BLOCK x BLOCK in which nothing is visible
SMALLEST_HEAD = 16  # numbers; the matrix products of its GPU kernel take no smaller heads
_MASK_ROWS = 1024  # queries whose mask is in memory at one time, a multiple of BLOCK
# Kernels of one process: for two lengths, two kinds of layers, with and without gradient, and some
# more. Beyond its limit (8) torch would go on without kernels, with all scores in memory.
_MOST_KERNELS = 64
_LARGEST_GAP = 0.05  # bfloat16 has 8 bits; a wrong mask or head changes numbers wholly
_SCORE_CHANGES = ("softcap", "s_aux", "position_bias")


def padded_length(tokens: int) -> int:
    """The next multiple of a block above `tokens`: one token of padding at least.

    Padding is then always a sequence of its own, and the mask always of one form.
    """
    return (tokens // BLOCK + 1) * BLOCK


def packed_flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers' interface; equal to its "sdpa".

    Args:
        module: the attention module.
        query: [B, heads, Q, D].
        key: [B, key heads, K, D].
        value: [B, key heads, K, D].
        attention_mask: of `block_mask`.
        scaling: factor on the scores; None is D ** -0.5.
        **kwargs: what else a model may pass.

    Returns:
        [B, Q, heads, D], and None for the attention weights.

    Raises:
        InputError: the family changes its scores in a way that SDPA does not know either.
    """
    unknown = [name for name in _SCORE_CHANGES if kwargs.get(name) is not None]
    if unknown:
        raise InputError(
            f"flex attention knows no {', '.join(unknown)}: use attn_implementation=eager"
        )
    device = query.device.type
    if torch.is_autocast_enabled(device):  # which leaves queries and keys in float32
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    output = _flex(
        query,
        key,
        value,
        block_mask=attention_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


def _flex(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    if torch.compiler.is_compiling():  # inside a compiled layer it is compiled with it
        return flex_attention(query, key, value, **arguments)
    return _by_kernel(query, key, value, **arguments)


@torch._dynamo.config.patch(recompile_limit=_MOST_KERNELS)
def _by_kernel(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    return compiled_flex()(query, key, value, **arguments)


@functools.cache
def compiled_flex() -> Callable[..., Tensor]:
    """Flex attention as kernels, which are made when it is called."""
    return torch.compile(flex_attention)


def block_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> BlockMask:
    """Mask function of transformers' interface: which blocks are visible, wholly or in part.

    Computed without compilation and without the whole mask in memory (256 MB at 16,384 tokens).

    Args:
        batch_size: B.
        q_length: queries of a row.
        kv_length: keys of a row.
        q_offset: position of the first query.
        kv_offset: position of the first key.
        mask_function: from indices (row, head, query, key) to visible or not.
        attention_mask: [B, keys] bool, false on padding.
        device: of the mask.
        **kwargs: for other kinds of masks.
    """
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        mask_function = and_masks(mask_function, padding_mask_function(padding))
    if q_offset or kv_offset:
        mask_function = add_offsets_to_mask_function(mask_function, q_offset, kv_offset)
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    keys = torch.arange(kv_length, device=device)[None, None, None, :]
    counts = []
    for queries in torch.arange(q_length, device=device).split(_MASK_ROWS):
        seen = mask_function(rows, torch.zeros_like(rows[:1]), queries[None, None, :, None], keys)
        counts.append(_seen_in_blocks(seen.expand(batch_size, 1, len(queries), kv_length)))
    seen_in_block = torch.cat(counts, dim=2)  # [B, 1, query blocks, key blocks]
    whole = seen_in_block == BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *_listed((seen_in_block > 0) & ~whole),
        *_listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_function,
        seq_lengths=(q_length, kv_length),
    )


def _seen_in_blocks(seen: Tensor) -> Tensor:
    """How many of each block's pairs are visible, [B, 1, query blocks, key blocks]."""
    filled = pad(seen, (0, -seen.shape[3] % BLOCK, 0, -seen.shape[2] % BLOCK))
    return filled.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).sum(dim=(3, 5))


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Number and indices of the true key blocks of each query block, as `BlockMask` keeps them."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)


def verify_flex(shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
    """Compare one call and its gradients with SDPA: kernels are made on the machine that runs them.

    Args:
        shape: of the model.
        device: where it computes.
        dtype: of queries, keys and values.

    Raises:
        InputError: the kernels cannot be made or run here, or compute something else.
    """
    if shape.head_size < SMALLEST_HEAD:
        raise InputError(f"flex attention takes no heads of {shape.head_size} numbers")
    sequence = torch.arange(2 * BLOCK, device=device).div(100, rounding_mode="floor")[None]
    visible = and_masks(causal_mask_function, packed_sequence_mask_function(sequence))
    length = 2 * BLOCK
    blocks = block_mask(1, length, length, mask_function=visible, device=device)
    rows = torch.arange(length, device=device)
    dense = visible(torch.zeros_like(rows[:1]), None, rows[:, None], rows[None])  # [queries, keys]

    def with_gradients(attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        query, key, value = (
            torch.linspace(0, 999, heads * length * shape.head_size, device=device)
            .sin()
            .to(dtype)
            .view(1, heads, length, shape.head_size)
            .requires_grad_()
            for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
        )
        output = attention(query, key, value)
        gradients = torch.autograd.grad(output.square().sum(), (query, key, value))
        return [output.detach(), *gradients]

    try:
        found = with_gradients(
            lambda q, k, v: packed_flex(nn.Module(), q, k, v, blocks)[0].transpose(1, 2)
        )
    except Exception as error:  # of torch, Triton, the compiler or the driver: all mean the same
        words = str(error).strip().splitlines() or [""]
        raise InputError(
            f"flex attention does not run here ({type(error).__name__}: {words[0]})"
        ) from error
    expected = with_gradients(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=True)
    )
    gaps = [(a - b).abs().max() / b.abs().max() for a, b in zip(found, expected, strict=True)]
    if not (gap := max(map(float, gaps))) <= _LARGEST_GAP:
        raise InputError(f"flex attention differs from sdpa by {gap:.2g} of the largest number")


AttentionInterface.register(FLEX_ATTENTION, packed_flex)
AttentionMaskInterface.register(FLEX_ATTENTION, block_mask)
