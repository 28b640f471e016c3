"""Tokens are drawn from exactly the distribution whose log-probs are reported."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from zerosearch.generation.generator import CompletionRequest, Sampling
from zerosearch.generation.transformers import sampling
from zerosearch.generation.transformers.sampling import (
    draw_uniforms,
    filter_logits,
    invert_cdf,
    sample_tokens,
    stack_sampling,
)

CPU = torch.device("cpu")


def settings(count: int = 1, **fields: Any) -> list[Sampling]:
    return [Sampling(**fields)] * count


def sample(logits, uniforms, samplings):
    return sample_tokens(
        torch.tensor(logits),
        torch.tensor(uniforms, dtype=torch.float64),
        stack_sampling(samplings, CPU),
    )


def test_inverse_cdf_by_hand():
    probs = torch.tensor([[0.25, 0.25, 0.5]]).expand(6, 3)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.4999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert invert_cdf(probs, uniforms).tolist() == [0, 0, 1, 1, 2, 2]


def test_inverse_cdf_never_returns_an_impossible_token():
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0, 0.0]]).expand(4, 6)
    edges = torch.tensor([0.0, 0.5 - 2**-54, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert invert_cdf(probs, edges).tolist() == [1, 1, 3, 3]
    # A total that rounds to less, or to more, than one: the last share takes the difference.
    for total in (0.9, 1.1):
        assert invert_cdf(probs * total, edges).tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("size", [16_384, 20_001])
def test_a_large_vocabulary_is_inverted_block_by_block(size: int, monkeypatch) -> None:
    probs = torch.rand(40, size, generator=torch.Generator().manual_seed(1))
    probs[probs < 0.5] = 0.0
    probs[:, 1000:3000] = 0.0  # whole blocks, too
    probs /= probs.sum(dim=-1, keepdim=True)
    uniforms = torch.rand(40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    uniforms[:3] = torch.tensor([0.0, 1 - 2**-53, 1.0])
    in_blocks = invert_cdf(probs, uniforms)
    monkeypatch.setattr(sampling, "_LARGE_VOCABULARY", size + 1)
    assert torch.equal(in_blocks, invert_cdf(probs, uniforms))
    assert (probs.gather(-1, in_blocks[:, None]) > 0).all()


def test_inverse_cdf_survives_a_uniform_of_one():
    assert invert_cdf(torch.tensor([[0.25, 0.75, 0.0]]), torch.tensor([1.0]).double()).item() == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        # p ** (1 / 0.5) = p ** 2, renormalised: 16, 9, 4, 1 of 30
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        # 0.4 + 0.3 = 0.7 is below 0.75, so the third token is still in the nucleus
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        # of the three left by top-k (4, 3, 2 of 9), two reach 0.7
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
    ],
)
def test_frequencies_and_logprobs_follow_the_filtered_softmax(fields, expected):
    draws = 20_000
    samplings = settings(draws, **fields)
    logits = [[math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]]
    uniforms = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ids, logprobs = sample_tokens(
        torch.tensor(logits).expand(draws, 4), uniforms, stack_sampling(samplings, CPU)
    )
    counts = torch.bincount(ids, minlength=4).double()
    wanted = torch.tensor(expected, dtype=torch.float64) * draws
    possible = wanted > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - wanted)[possible] ** 2 / wanted[possible]).sum().item()
    assert chi_square < 16.3  # 0.1% point of chi-square with 3 degrees of freedom
    torch.testing.assert_close(logprobs.exp(), torch.tensor(expected)[ids], rtol=1e-5, atol=0)


def test_rows_keep_their_own_settings():
    logits = [[math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]] * 4
    mixed = [
        *settings(temperature=0),
        *settings(top_k=1),
        *settings(top_p=0.5, temperature=0.5),
        *settings(),
    ]
    ids, logprobs = sample(logits, [0.99] * 4, mixed)
    assert ids.tolist() == [0, 0, 0, 3]
    # greedy: plain softmax; top_k 1: certain; 16/30 alone reaches 0.5: certain; 0.1 as it is
    expected = [math.log(0.4), 0.0, 0.0, math.log(0.1)]
    torch.testing.assert_close(logprobs, torch.tensor(expected), atol=1e-6, rtol=0)


def test_greedy_ignores_filters_and_uniforms():
    ids, logprobs = sample([[0.0, 2.0, 1.0]], [0.7], settings(temperature=0, top_k=1, top_p=0.1))
    assert ids.tolist() == [1]
    assert logprobs.item() == pytest.approx(2 - math.log(1 + math.exp(2) + math.exp(1)), abs=1e-6)


def test_top_k_keeps_exactly_k_of_equal_tokens():
    kept = filter_logits(torch.zeros(2, 5), torch.tensor([2, 0]), None)
    assert torch.isfinite(kept).tolist() == [[True, True, False, False, False], [True] * 5]


def test_nucleus_keeps_the_likeliest_token_whatever_p_is():
    kept = filter_logits(torch.tensor([[0.0, 9.0]]), None, torch.tensor([1e-9]).double())
    assert torch.isfinite(kept).tolist() == [[False, True]]


def test_uniforms_come_from_the_seed_alone():
    first = draw_uniforms(CompletionRequest(max_new_tokens=5, seed=2**63))
    torch.rand(3)
    assert draw_uniforms(CompletionRequest(max_new_tokens=5, seed=2**63)) == first
    assert draw_uniforms(CompletionRequest(max_new_tokens=5, seed=1)) != first
    assert len(first) == 5 and all(0 <= u < 1 for u in first)
