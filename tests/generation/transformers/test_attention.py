"""The decoding attention equals the model's own, and leaves no trace on the model."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.models import make_model, make_tokenizer
from zerosearch.generation.transformers.attention import GROUPED_SDPA, generating, sampling_step
from zerosearch.generation.transformers.bound_policy import BoundPolicy
from zerosearch.generation.transformers.kv import RowCache
from zerosearch.policy.flex_attention import FLEX_ATTENTION

SLIDING = {"model_type": "gemma3_text", "sliding_window": 6}
MODELS = {
    "grouped": {},
    "one key head": {"num_key_value_heads": 1},
    "no groups": {"num_key_value_heads": 4},
    "qwen2": {"model_type": "qwen2"},
    "sliding": SLIDING | {"layer_types": ["sliding_attention", "full_attention"]},
    "all sliding": {"model_type": "mistral", "sliding_window": 6},
    "eager": {"attn_implementation": "eager"},
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_left_padded_rows_match_a_forward_without_cache(name):
    """Rows of 9 and 4 tokens: a chunk with past and right padding, then two single tokens."""
    fields = dict(MODELS[name])
    model = make_model(0, scale=2.0, **fields).eval()
    if "attn_implementation" in fields:
        model.set_attn_implementation(fields["attn_implementation"])
    ids = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(0))
    lengths, cache = torch.tensor([9, 4]), RowCache(2, rows=2, past=0, new=40)
    wanted = torch.stack([model(ids[row : row + 1]).logits[0] for row in range(2)])

    def feed(queries: int) -> torch.Tensor:
        first = cache.window - lengths
        positions = lengths[:, None] + torch.arange(queries)
        output = model(
            input_ids=ids.gather(1, positions),
            attention_mask=torch.arange(cache.window + queries) >= first[:, None],
            position_ids=positions,
            past_key_values=cache.cache,
            use_cache=True,
        )
        cache.end += queries
        return output.logits - wanted.gather(1, positions[..., None].expand_as(output.logits))

    with generating(model):
        alone = RowCache(2, rows=2, past=0, new=9)
        model(ids[:, :9], past_key_values=alone.cache, position_ids=torch.arange(9).expand(2, 9))
        cache.reserve(2, 9)
        cache.put(0, alone.view(0, 0, 9))
        cache.put(1, alone.view(1, 0, 4))
        assert feed(5).abs().max() < 1e-5
        lengths += 5
        for _ in range(2):
            assert feed(1).abs().max() < 1e-5
            lengths += 1


@pytest.mark.parametrize("trained_with", ["sdpa", FLEX_ATTENTION])
def test_generating_restores_modes_and_attention_even_after_an_error(trained_with):
    model = make_model()
    model.set_attn_implementation(trained_with)
    model.lm_head.eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), generating(model):
        assert model.config._attn_implementation == GROUPED_SDPA
        assert not any(module.training for module in model.modules())
        raise KeyError("x")
    assert [module.training for module in model.modules()] == before
    assert model.config._attn_implementation == trained_with


def test_the_copy_of_a_policy_trained_with_flex_samples_with_sdpa():
    model = make_model()
    model.set_attn_implementation(FLEX_ATTENTION)
    bound = BoundPolicy(model, make_tokenizer(), copied=True)
    assert bound.model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == FLEX_ATTENTION


def test_weights_cast_while_sampling_do_not_outlive_it():
    """Nested in one autocast region, a weight's cast would still be used after its update."""
    model, ids = make_model(), torch.arange(12)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with generating(model), sampling_step(torch.device("cpu")):
            before = model(ids).logits
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
        after = model(ids).logits
        after.float().logsumexp(-1).sum().backward()
    torch.testing.assert_close(after, 2 * before)
    assert all(parameter.grad is not None for parameter in model.parameters())
