"""Operations of a training step against those that torch counts while it computes."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.models import make_model
from tests.policy.test_flex_attention import make_batch
from zerosearch.policy.activation_memory import Shape
from zerosearch.policy.flops import step_flops
from zerosearch.policy.logprobs import token_logprobs


@pytest.mark.parametrize("recomputed", [False, True])
def test_operations_are_those_that_torch_counts(recomputed: bool) -> None:
    """One sequence, so that nothing is padding; torch counts attention to later tokens as well."""
    model = make_model(intermediate_size=100, num_key_value_heads=1)
    model.set_attn_implementation("eager")  # sdpa is not counted on a CPU
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tokens, shape = 40, Shape(model.config)
    ids, attended, selected = make_batch(tokens)
    selected[0, : tokens // 2] = False
    with FlopCounterMode(display=False) as counter:
        token_logprobs(model, ids, attended, selected).logprobs.sum().backward()
    later = tokens * (tokens - 1) // 2 * 4 * shape.heads * shape.head_size * shape.layers
    head = 2 * shape.hidden * shape.vocabulary * tokens // 2
    found = step_flops(shape, [tokens], tokens // 2, recomputed=recomputed)
    passes = 4 if recomputed else 3
    # the head's logits are computed again in any case, chunk by chunk
    assert counter.get_total_flops() == found + passes * later + (0 if recomputed else head)


def test_hand_computed_operations() -> None:
    """Two sequences: attention does not go from one to the other."""
    shape = Shape(make_model().config)  # h=64, f=128, 2 layers, 4 and 2 heads of 16
    weights = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    pairs = 3 + 6  # of 2 and of 3 tokens
    forward = 2 * (2 * weights * 5 + 4 * 64 * pairs) + 2 * 64 * 259 * 4
    assert step_flops(shape, [2, 3], 4) == 3 * forward
    again = forward - 2 * (2 * 64 * 128 * 5)
    assert step_flops(shape, [2, 3], 4, recomputed=True) == 3 * forward + again
