"""Packed sequences under flex attention against the padded rows of SDPA, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    packed_sequence_mask_function,
    sliding_window_causal_mask_function,
)

from tests.helpers.flex import flex_on_cpu
from tests.helpers.models import make_model
from zerosearch.policy import flex_attention
from zerosearch.policy.flex_attention import BLOCK, FLEX_ATTENTION, block_mask, padded_length
from zerosearch.policy.logprobs import token_logprobs

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "hidden_size": 96, "num_attention_heads": 6},
    "sliding": {"model_type": "mistral", "sliding_window": 5},
    "both kinds": {"model_type": "gemma3_text", "sliding_window": 5},
}


def make_batch(*lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention and selection [B, T] of rows of so many tokens."""
    shape = (len(lengths), max(lengths))
    ids = torch.randint(0, 250, shape, generator=torch.Generator().manual_seed(1))
    attended = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    selected = attended.clone()
    selected[:, 0] = False
    return ids, attended, selected


def gradients(model: torch.nn.Module, logprobs: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    (logprobs * torch.linspace(-1, 1, logprobs.numel()).view_as(logprobs)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "checkpointing"),
    [("qwen2", False), ("qwen2", True), ("sliding", True), ("both kinds", True)],
)
def test_packed_flex_equals_padded_sdpa(family: str, checkpointing: bool) -> None:
    model = make_model(3, scale=4.0, **FAMILIES[family])
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = make_batch(12, 9, 140, 4)
    expected = token_logprobs(model, *batch)
    expected_gradients = gradients(model, expected.logprobs)
    model.set_attn_implementation(FLEX_ATTENTION)
    with flex_on_cpu():
        stats = token_logprobs(model, *batch, packed=True)
        found = gradients(model, stats.logprobs)
    torch.testing.assert_close(stats.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.entropy, expected.entropy, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected_gradients.keys()
    for name, gradient in found.items():
        scale = expected_gradients[name].abs().max().clamp(min=1.0)
        torch.testing.assert_close(
            gradient / scale, expected_gradients[name] / scale, rtol=0, atol=1e-5, msg=name
        )


def test_any_number_of_lengths_takes_two_kernels() -> None:
    """One for the first length, one for all others: a kernel takes seconds to be made."""
    model = make_model(3)
    model.set_attn_implementation(FLEX_ATTENTION)
    made = CompileCounterWithBackend("eager")
    with flex_on_cpu(made), torch.no_grad():
        for lengths in ((20, 30), (100, 60, 20), (127,), (BLOCK,), (BLOCK, BLOCK), (400,)):
            token_logprobs(model, *make_batch(*lengths), packed=True)
    assert made.frame_count == 2


def test_rows_are_padded_to_whole_blocks_by_one_token_at_least() -> None:
    assert [padded_length(n) for n in (1, 127, 128, 129)] == [128, 128, 256, 256]


@pytest.mark.parametrize("window", [None, 5, 200])
def test_the_block_mask_is_that_of_torch(window: int | None) -> None:
    lengths = (3, 300, 130, 1, 1, 500, 400)  # blocks of one sequence, of parts of two, of many
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    causal = causal_mask_function
    visible = and_masks(
        causal if window is None else sliding_window_causal_mask_function(window),
        packed_sequence_mask_function(sequence),
    )
    total = sum(lengths)
    found = block_mask(1, total, total, mask_function=visible)
    expected = create_block_mask(visible, 1, None, total, total, device="cpu")
    assert found.shape == expected.shape and found.BLOCK_SIZE == expected.BLOCK_SIZE
    for kind in ("kv", "full_kv", "q", "full_q"):
        assert torch.equal(blocks(found, kind), blocks(expected, kind)), kind
    assert blocks(found, "kv").any() and not blocks(found, "kv").all()


def blocks(mask: BlockMask, kind: str) -> Tensor:
    """[rows of blocks, blocks of a row] bool: those in a list; beyond its end is anything."""
    counts: Tensor = getattr(mask, f"{kind}_num_blocks")[0, 0]
    indices: Tensor = getattr(mask, f"{kind}_indices")[0, 0]
    listed = torch.zeros(indices.shape, dtype=torch.bool)
    for row, count in enumerate(counts.tolist()):
        listed[row, indices[row, :count].long()] = True
    return listed


def test_padded_rows_may_be_read_too() -> None:
    model = make_model(3, scale=4.0)
    batch = make_batch(12, 9)
    expected = token_logprobs(model, *batch)
    model.set_attn_implementation(FLEX_ATTENTION)
    with flex_on_cpu(), torch.no_grad():
        found = token_logprobs(model, *batch)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)


def test_the_whole_mask_is_never_in_memory() -> None:
    seen: list[int] = []

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen.append(query.numel() * key.numel())
        return key <= query

    block_mask(1, 3000, 3000, mask_function=visible)
    assert max(seen) == 1024 * 3000 and sum(seen) == 3000 * 3000


def test_key_heads_are_not_repeated_and_autocast_is_obeyed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rotary embeddings leave float32 under autocast; the backward pass takes one dtype only."""
    model = make_model(3, **FAMILIES["qwen2"])
    model.set_attn_implementation(FLEX_ATTENTION)
    given: set[tuple[torch.dtype, int]] = set()

    def record(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        given.update((each.dtype, each.shape[1]) for each in (query, key, value))
        return query

    monkeypatch.setattr(flex_attention, "compiled_flex", lambda: record)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        token_logprobs(model, *make_batch(12, 9), packed=True)
    assert given == {(torch.bfloat16, 6), (torch.bfloat16, 2)}
