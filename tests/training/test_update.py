"""One update from tensors: the gradient depends on the trajectories alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import make_model
from tests.helpers.training import make_turns_trajectory
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.importance import ImportanceCorrection
from zerosearch.policy.logprobs import token_logprobs
from zerosearch.training.batching import collate, select
from zerosearch.training.micro_batches import MicroBatches
from zerosearch.training.update import PolicyUpdater
from zerosearch.types import PolicyBatch

LENGTHS = ((7, 9, 5), (2, 0, 3), (12, 4, 8), (1, 0, 0), (6, 6, 6), (3, 2, 1), (10, 0, 2))
BUDGETS = {1: 10_000, 2: 120, 5: 27}  # micro-batches -> padded tokens
EVERY_TERM = {"kl_coefficient": 0.1, "entropy_coefficient": 0.05}


def make_batch() -> PolicyBatch:
    """Seven trajectories of unequal length: a sampled turn, a document, another turn."""
    source = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(256, (count,), generator=source).tolist()

    rows = [
        make_turns_trajectory([tokens(first), tokens(last)], [tokens(between)])
        for first, between, last in LENGTHS
    ]
    batch = collate(rows, pad_id=258)
    batch.advantages = torch.randn(len(rows), generator=source)[:, None] * batch.sampled_mask
    noise = 0.3 * torch.randn(batch.input_ids.shape, generator=source)
    return dataclasses.replace(batch, ref_logprobs=-5.0 + noise)


def make_updater(budget: int = 10_000, *, packed: bool = False, **settings: Any) -> PolicyUpdater:
    return PolicyUpdater(
        algorithm=Algorithm(group_size=4, **{**EVERY_TERM, **settings}),
        micro_batches=MicroBatches(tokens=budget, device=torch.device("cpu"), packed=packed),
        chunk_tokens=16,
        temperature=1.0,
    )


def backward(loss: Tensor) -> None:
    loss.backward()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


def accumulate(updater: PolicyUpdater, batch: PolicyBatch) -> tuple[dict[str, Tensor], dict]:
    """Gradients and metric sums of one update of the same policy."""
    model = make_model(3, scale=3.0)
    sums = updater.accumulate(model, batch, backward)
    return gradients(model), sums


def assert_same(one: tuple[dict, dict], other: tuple[dict, dict], tolerance: float = 1e-6) -> None:
    for found, expected in zip(one, other, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                torch.as_tensor(found[name]), torch.as_tensor(value), rtol=1e-5, atol=tolerance
            )


# -- invariant 6: the split does not matter -------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"aggregation": "token-mean"},
        {"aggregation": "sequence-mean"},
        {"aggregation": "constant", "constant_length": 30},
    ],
    ids=lambda settings: settings["aggregation"],
)
def test_invariant_06_the_gradient_does_not_depend_on_micro_batches(
    settings: dict[str, Any],
) -> None:
    batch = make_batch()
    whole = accumulate(make_updater(**settings), batch)
    assert max(float(gradient.abs().max()) for gradient in whole[0].values()) > 1e-3
    for count, budget in BUDGETS.items():
        updater = make_updater(budget, **settings)
        assert len(list(updater.micro_batches.split(batch))) == count
        assert_same(accumulate(updater, batch), whole)


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean"])
def test_invariant_06_the_gradient_does_not_depend_on_packing(aggregation: str) -> None:
    batch = make_batch()
    padded = accumulate(make_updater(aggregation=aggregation), batch)
    for budget, count in ((10_000, 1), (60, 2), (27, 4)):
        packed = make_updater(budget, packed=True, aggregation=aggregation)
        assert len(list(packed.micro_batches.split(batch))) == count
        assert_same(accumulate(packed, batch), padded)


def test_defect_10_every_token_weighs_the_same_wherever_it_is() -> None:
    batch = make_batch()
    # with a ratio of 1 the loss is minus the mean advantage of the sampled tokens
    mean = float(batch.advantages[batch.sampled_mask].mean())
    for budget in BUDGETS.values():
        _, sums = accumulate(make_updater(budget), batch)
        assert sums["tokens"] == sum(first + last for first, _, last in LENGTHS)
        assert sums["policy_loss"] == pytest.approx(-mean, abs=1e-6)


def test_invariant_06_log_probs_do_not_depend_on_micro_batches() -> None:
    batch, model = make_batch(), make_model(3, scale=3.0)
    expected = torch.zeros_like(batch.behaviour_logprobs)
    for row in range(len(LENGTHS)):
        one = select(batch, [row])
        found = token_logprobs(model, one.input_ids, one.attention_mask, one.sampled_mask)
        expected[row, : found.logprobs.shape[1]] = found.logprobs[0]
    assert (expected != 0).equal(batch.sampled_mask)
    for budget in BUDGETS.values():
        updater = make_updater(budget)
        logprobs = updater.logprobs(model, batch)
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
        assert not logprobs.requires_grad


# -- invariant 2: inserted tokens -----------------------------------------------------------------


@pytest.mark.parametrize("garbage", [7.0, -1e30, float("inf"), float("nan")])
def test_invariant_02_values_of_inserted_tokens_are_never_read(garbage: float) -> None:
    batch = dataclasses.replace(make_batch(), old_logprobs=torch.full((7, 26), -5.0))
    outside = ~batch.sampled_mask
    assert outside[batch.attention_mask].any(), "documents are among them"
    fields = ("behaviour_logprobs", "old_logprobs", "ref_logprobs", "advantages")
    changed = dataclasses.replace(
        batch, **{name: getattr(batch, name).masked_fill(outside, garbage) for name in fields}
    )
    updater = make_updater(40, importance_correction=ImportanceCorrection())
    assert_same(accumulate(updater, changed), accumulate(updater, batch), tolerance=0.0)


def test_invariant_02_inserted_tokens_are_context_all_the_same() -> None:
    batch = make_batch()
    changed = dataclasses.replace(batch, input_ids=batch.input_ids.clone())
    changed.input_ids[0, 2 + LENGTHS[0][0]] += 1  # the first token of a document
    updater = make_updater()
    assert accumulate(updater, changed)[1] != accumulate(updater, batch)[1]


# -- invariant 9: ranks without data --------------------------------------------------------------


def test_invariant_09_a_rank_without_trajectories_makes_a_backward_pass_of_zeros() -> None:
    nothing = collate([], pad_id=0)
    nothing.ref_logprobs = torch.zeros_like(nothing.advantages)
    found, sums = accumulate(make_updater(), nothing)
    assert all(bool((gradient == 0).all()) for gradient in found.values())
    assert set(sums.values()) == {0.0}


def test_invariant_09_micro_batches_are_filled_up_to_those_of_the_busiest_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zerosearch.training.micro_batches.all_reduce", lambda value, *_: value + 2)
    micro_batches = list(make_updater(120).micro_batches.split(make_batch()))
    assert [len(rows) for rows, _ in micro_batches] == [4, 3, 0, 0]
    assert all(micro.ref_logprobs is not None for _, micro in micro_batches)
    assert not micro_batches[-1][1].sampled_mask.any()
