import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from zerosearch.algorithms.aggregation import loss_normalizer
from zerosearch.algorithms.importance import ImportanceCorrection
from zerosearch.algorithms.losses import cispo, gspo, policy_loss, ppo_clip, reinforce

FUNCTIONS = [ppo_clip, gspo, cispo, reinforce]
AGGREGATIONS = ["token-mean", "sequence-mean", "constant"]

# Two sequences with 3 and 1 sampled tokens; the rest is inserted text or padding.
MASK = torch.tensor([[True, True, False, True], [False, True, False, False]])
VALUES = torch.tensor([[1.0, 2.0, 50.0, 3.0], [70.0, 8.0, 90.0, -4.0]])


def ratios(*values: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and old log-probs with the given probability ratios."""
    old = torch.full((len(values), len(values[0])), -1.5)
    return (old + torch.tensor(values).log()).requires_grad_(), old


def random_batch(rows: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 6)
    logprobs = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[1] = False  # a row without any sampled token, as an invalid trajectory gives
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + 0.4 * torch.randn(shape, generator=generator).double(),
        "advantages": torch.randn(rows, generator=generator).double(),
        "mask": mask,
        "behaviour_logprobs": logprobs + 0.2 * torch.randn(shape, generator=generator).double(),
    }


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        # d loss / d logprob = -ratio * advantage inside the clip range, else 0
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.6, 0.0, 1),  # clipped at 1 + 0.3
        (0.5, 2.0, -1.0, -1.0, 0),  # a bad ratio for a good token is never clipped
        (1.0, -2.0, 2.0, 2.0, 0),
        (0.5, -2.0, 1.6, 0.0, 1),  # clipped at 1 - 0.2
        (1.5, -2.0, 3.0, 3.0, 0),
        (4.0, -2.0, 6.0, 0.0, 1),  # dual clip: at most 3 * |advantage|
        (4.0, 0.0, 0.0, 0.0, 0),
    ],
)
def test_clips_match_hand_computed_values(ratio, advantage, loss, slope, clipped) -> None:
    logprobs, old = ratios([ratio])
    result, metrics = policy_loss(
        partial(ppo_clip, clip_low=0.2, clip_high=0.3, dual_clip=3.0),
        logprobs,
        old,
        torch.tensor([advantage]),
        torch.tensor([[True]]),
        normalizer=1.0,
    )
    (gradient,) = torch.autograd.grad(result, logprobs)
    assert result.item() == pytest.approx(loss)
    assert gradient.item() == pytest.approx(slope)
    assert metrics["clipped_sum"].item() == clipped


def test_without_dual_clip_a_bad_token_is_not_bounded() -> None:
    logprobs, old = ratios([4.0])
    loss, _ = policy_loss(
        ppo_clip, logprobs, old, torch.tensor([-2.0]), torch.tensor([[True]]), normalizer=1.0
    )
    assert loss.item() == pytest.approx(8.0)


def test_metrics_are_sums_over_sampled_tokens() -> None:
    logprobs, old = ratios([1.0, 1.5, 9.0, 0.4], [9.0, 1.5, 9.0, 9.0])
    _, metrics = policy_loss(ppo_clip, logprobs, old, torch.tensor([1.0, -1.0]), MASK, normalizer=4)
    values = {name: value.item() for name, value in metrics.items()}
    expected = {
        "tokens": 4.0,
        "ratio_sum": 1.0 + 1.5 + 0.4 + 1.5,
        "clipped_sum": 1.0,
        "tail_sum": 1.0,  # 0.4 < 1 / 2
    }
    assert values == pytest.approx(expected)
    assert not any(value.requires_grad for value in metrics.values())


def test_sequence_ratio_is_the_length_normalised_product() -> None:
    logprobs, old = ratios([2.0, 0.25, 9.0, 4.0], [9.0, 1.1, 9.0, 9.0])
    advantages = torch.tensor([3.0, 5.0])
    loss, metrics = policy_loss(
        partial(gspo, clip_high=1.0),
        logprobs,
        old,
        advantages,
        MASK,
        normalizer=2.0,
        aggregation="sequence-mean",
    )
    first, second = (2.0 * 0.25 * 4.0) ** (1 / 3), 1.1
    assert loss.item() == pytest.approx(-(first * 3.0 + second * 5.0) / 2)
    assert metrics["ratio_sum"].item() == pytest.approx(3 * first + second)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    # d s / d logprob_t = s / length for each of the sequence's own tokens
    token = -first * 3.0 / 3 / 2
    expected = torch.tensor([[token, token, 0, token], [0, -second * 5.0 / 2, 0, 0]])
    torch.testing.assert_close(gradient, expected)


def test_sequence_ratio_clips_whole_sequences() -> None:
    logprobs, old = ratios([1.5, 1.5, 9.0, 1.0], [9.0, 1.1, 9.0, 9.0])
    function = partial(gspo, clip_low=0.2, clip_high=0.2)
    loss, metrics = policy_loss(function, logprobs, old, torch.ones(2), MASK, normalizer=4.0)
    assert metrics["clipped_sum"].item() == 3  # 2.25 ** (1 / 3) = 1.31 > 1.2
    assert loss.item() == pytest.approx(-(3 * 1.2 + 1.1) / 4)


@pytest.mark.parametrize(
    ("ratio", "weight", "clipped"), [(0.1, 0.5, 1), (1.0, 1.0, 0), (2.0, 2.0, 0), (9.0, 3.0, 1)]
)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_bounds_the_weight_and_keeps_every_gradient(
    ratio: float, weight: float, clipped: int, advantage: float
) -> None:
    logprobs, old = ratios([ratio])
    function = partial(cispo, ratio_low=0.5, ratio_high=3.0)
    mask = torch.tensor([[True]])
    loss, metrics = policy_loss(
        function, logprobs, old, torch.tensor([advantage]), mask, normalizer=1.0
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert loss.item() == pytest.approx(-weight * advantage * logprobs.item())
    assert gradient.item() == pytest.approx(-weight * advantage)
    assert metrics["clipped_sum"].item() == clipped
    assert metrics["ratio_sum"].item() == pytest.approx(ratio)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 9.0])
def test_reinforce_is_weighed_by_the_ratio_itself(ratio: float) -> None:
    logprobs, old = ratios([ratio])
    loss, metrics = policy_loss(
        reinforce, logprobs, old, torch.tensor([-2.0]), torch.tensor([[True]]), normalizer=1.0
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert loss.item() == pytest.approx(2.0 * ratio * logprobs.item())
    assert gradient.item() == pytest.approx(2.0 * ratio)
    assert metrics["clipped_sum"].item() == 0


def test_functions_agree_as_long_as_the_policy_is_the_old_one() -> None:
    """With one update a step the ratio is 1: the gradient of each is -A, here of four tokens."""
    advantages = torch.tensor([3.0, -5.0])
    for function in FUNCTIONS:
        logprobs, old = ratios([1.0] * 4, [1.0] * 4)
        loss, _ = policy_loss(function, logprobs, old, advantages, MASK, normalizer=1.0)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        expected = torch.where(MASK, -advantages[:, None], 0.0)
        torch.testing.assert_close(gradient, expected)


def test_advantages_per_token_weigh_their_own_token() -> None:
    logprobs, old = ratios([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    loss, _ = policy_loss(ppo_clip, logprobs, old, VALUES, MASK, normalizer=1.0)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient, torch.where(MASK, -VALUES, 0.0))


@pytest.mark.parametrize(
    ("correction", "weights"),
    [
        (ImportanceCorrection(high=2.0), [0.5, 2.0]),
        (ImportanceCorrection(kind="mask", low=0.5, high=2.0), [0.5, 0.0]),
        (ImportanceCorrection(level="sequence", high=9.0), [2.5, 2.5]),  # 0.5 * 5
    ],
)
def test_importance_weights_are_bounded_constants(
    correction: ImportanceCorrection, weights: list[float]
) -> None:
    logprobs, old = ratios([1.0, 1.0])
    behaviour = old - torch.tensor([[0.5, 5.0]]).log()  # ratios 0.5 and 5
    mask, advantage = torch.ones(1, 2, dtype=torch.bool), torch.tensor([2.0])
    loss, metrics = policy_loss(
        ppo_clip,
        logprobs,
        old,
        advantage,
        mask,
        normalizer=1.0,
        behaviour_logprobs=behaviour,
        importance_correction=correction,
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert loss.item() == pytest.approx(-2.0 * sum(weights))
    torch.testing.assert_close(gradient, -2.0 * torch.tensor([weights]))
    assert metrics["importance_sum"].item() == pytest.approx(sum(weights))
    assert metrics["importance_cut_sum"].item() == float(correction.level == "token")


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_defect_10_loss_and_gradient_do_not_depend_on_the_split(
    aggregation, function, parts: int
) -> None:
    """10 rows in uneven parts; the reference averaged each micro-batch on its own."""
    batch = random_batch(10)
    bounds = {1: [0, 10], 2: [0, 7, 10], 5: [0, 1, 2, 6, 9, 10]}[parts]
    normalizer = loss_normalizer(batch["mask"], aggregation, constant_length=6)

    def loss_of(start: int, stop: int, logprobs: torch.Tensor) -> torch.Tensor:
        rows: dict[str, Any] = {name: tensor[start:stop] for name, tensor in batch.items()}
        rows["logprobs"] = logprobs[start:stop]
        return policy_loss(
            function,
            **rows,
            normalizer=normalizer,
            aggregation=aggregation,
            importance_correction=ImportanceCorrection(level="sequence", high=2.0),
        )[0]

    whole = batch["logprobs"].clone().requires_grad_()
    whole_loss = loss_of(0, 10, whole)
    whole_loss.backward()
    split = batch["logprobs"].clone().requires_grad_()
    part_losses = [loss_of(a, b, split) for a, b in pairwise(bounds)]
    for loss in part_losses:
        loss.backward()
    assert whole_loss.abs() > 0.01
    torch.testing.assert_close(torch.stack(part_losses).sum(), whole_loss)
    torch.testing.assert_close(split.grad, whole.grad)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_empty_mask_gives_zero_loss_with_a_gradient(aggregation, function) -> None:
    """A rank without data still runs its backward pass, or the other ranks would wait for ever."""
    logprobs, old = ratios([1.0, 2.0])
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    loss, metrics = policy_loss(
        function, logprobs, old, torch.ones(1), nothing, normalizer=7.0, aggregation=aggregation
    )
    loss.backward()
    assert loss.item() == 0.0
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.0, 0.0]]
    assert metrics["tokens"].item() == 0.0


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_outside_the_mask_are_never_read(function) -> None:
    batch = random_batch(4)
    clean = batch["logprobs"].clone().requires_grad_()
    expected, _ = policy_loss(function, **(batch | {"logprobs": clean}), normalizer=10.0)
    expected.backward()
    mask = batch["mask"]
    dirty = {
        "logprobs": batch["logprobs"].masked_fill(~mask, -math.inf),
        "old_logprobs": batch["old_logprobs"].masked_fill(~mask, math.nan),
        "behaviour_logprobs": batch["behaviour_logprobs"].masked_fill(~mask, math.inf),
    }
    dirty["logprobs"].requires_grad_()
    loss, _ = policy_loss(function, **(batch | dirty), normalizer=10.0)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(dirty["logprobs"].grad, clean.grad)


@pytest.mark.parametrize("gap", [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_large_log_ratios_stay_finite(gap: float, advantage: float, function) -> None:
    logprobs = torch.full((1, 3), gap, requires_grad=True)
    loss, _ = policy_loss(
        function,
        logprobs,
        torch.zeros(1, 3),
        torch.tensor([advantage]),
        torch.ones(1, 3, dtype=torch.bool),
        normalizer=3.0,
        behaviour_logprobs=torch.full((1, 3), -gap),
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_old_logprobs_and_advantages_are_constants() -> None:
    logprobs, old = ratios([1.1, 0.9])
    old.requires_grad_()
    advantages = torch.ones(1, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    policy_loss(ppo_clip, logprobs, old, advantages, mask, normalizer=2.0)[0].backward()
    assert logprobs.grad is not None
    assert old.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (partial(ppo_clip, clip_low=1.5), "clip_low=1.5"),
        (partial(ppo_clip, clip_low=-0.1), "clip_low=-0.1"),
        (partial(gspo, clip_high=-0.1), "clip_high=-0.1"),
        (partial(ppo_clip, dual_clip=1.0), r"dual_clip=1.0.*above 1"),
        (partial(cispo, ratio_low=2.0), "ratio_low=2.0"),
        (partial(cispo, ratio_high=0.5), "ratio_high=0.5"),
    ],
)
def test_bad_options_of_a_function_are_refused(function, message: str) -> None:
    logprobs, old = ratios([1.0] * 4, [1.0] * 4)
    with pytest.raises(ValueError, match=message):
        policy_loss(function, logprobs, old, torch.ones(2), MASK, normalizer=4.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance_correction": ImportanceCorrection()}, "needs behaviour_logprobs"),
        ({"aggregation": "mean"}, "aggregation='mean'"),
        ({"behaviour_logprobs": torch.zeros(2, 3)}, r"behaviour_logprobs has shape \(2, 3\)"),
    ],
)
def test_bad_options_are_refused(options, message: str) -> None:
    logprobs, old = ratios([1.0] * 4, [1.0] * 4)
    with pytest.raises(ValueError, match=message):
        policy_loss(ppo_clip, logprobs, old, torch.ones(2), MASK, normalizer=4.0, **options)


def test_bad_shapes_are_refused() -> None:
    logprobs, old = ratios([1.0] * 4, [1.0] * 4)
    with pytest.raises(ValueError, match=r"advantages has shape \(4,\)"):
        policy_loss(ppo_clip, logprobs, old, torch.ones(4), MASK, normalizer=4.0)
    with pytest.raises(ValueError, match=r"old_logprobs has shape \(1, 4\)"):
        policy_loss(ppo_clip, logprobs, old[:1], torch.ones(2), MASK, normalizer=4.0)
