import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.algorithms.kl import K3_TANGENT_GAP, kl_estimate

REFERENCE = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
START = torch.tensor([0.9, -0.4, 0.3, -1.2], dtype=torch.float64)  # logits of a softmax table


def true_kl(logits: torch.Tensor) -> torch.Tensor:
    """KL(policy || reference), summed over the whole table."""
    logprobs = logits.log_softmax(-1)
    return (logprobs.exp() * (logprobs - REFERENCE)).sum()


def expected_estimate(logits: torch.Tensor, kind) -> torch.Tensor:
    """Mean of the estimate over tokens drawn from the policy, whose sampling has no gradient."""
    logprobs = logits.log_softmax(-1)
    return (logprobs.detach().exp() * kl_estimate(logprobs, REFERENCE, kind)).sum()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", [math.log(2), -math.log(2), 0.0]),
        ("k2", [math.log(2) ** 2 / 2, math.log(2) ** 2 / 2, 0.0]),
        ("k3", [0.5 - 1 + math.log(2), 2 - 1 - math.log(2), 0.0]),
        ("abs", [math.log(2), math.log(2), 0.0]),
    ],
)
def test_estimates_match_hand_computed_values(kind, expected) -> None:
    logprobs = torch.tensor([[0.5, 0.25, 0.1]]).log()
    ref_logprobs = torch.tensor([[0.25, 0.5, 0.1]]).log()
    estimate = kl_estimate(logprobs, ref_logprobs, kind)
    torch.testing.assert_close(estimate, torch.tensor([expected]))


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(kind) -> None:
    torch.testing.assert_close(expected_estimate(START, kind), true_kl(START))


@pytest.mark.parametrize("kind", ["k2", "k3", "abs"])
def test_defect_01_a_step_on_the_kl_loss_moves_the_policy_towards_the_reference(kind) -> None:
    logits = START.clone().requires_grad_()
    expected_estimate(logits, kind).backward()
    assert logits.grad is not None
    assert true_kl(START - 0.1 * logits.grad) < true_kl(START)
    assert true_kl(START + 0.1 * logits.grad) > true_kl(START)  # what subtracting the KL does


def test_k2_has_the_gradient_of_the_true_kl_and_k1_has_none() -> None:
    gradients = {}
    for name, function in {
        "true": true_kl,
        "k1": lambda logits: expected_estimate(logits, "k1"),
        "k2": lambda logits: expected_estimate(logits, "k2"),
    }.items():
        logits = START.clone().requires_grad_()
        (gradients[name],) = torch.autograd.grad(function(logits), logits)
    torch.testing.assert_close(gradients["k2"], gradients["true"])
    torch.testing.assert_close(gradients["k1"], torch.zeros_like(START))


def test_k3_has_the_gradient_of_the_reverse_kl() -> None:
    logits = START.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected_estimate(logits, "k3"), logits)
    torch.testing.assert_close(gradient, START.softmax(-1) - REFERENCE.exp())


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "abs"])
@pytest.mark.parametrize("gap", [-1e6, -500.0, -100.0, -11.0, 11.0, 100.0, 500.0, 1e6])
def test_large_gaps_stay_finite_in_value_and_gradient(kind, gap: float) -> None:
    logprobs = torch.tensor([-1.0 + gap], requires_grad=True)
    estimate = kl_estimate(logprobs, torch.tensor([-1.0]), kind)
    (gradient,) = torch.autograd.grad(estimate.sum(), logprobs)
    assert estimate.isfinite().all()
    assert gradient.isfinite().all()
    assert torch.sign(gradient).item() == (1.0 if kind == "k1" else math.copysign(1.0, gap))


def test_k3_is_continued_by_its_tangent() -> None:
    edge = torch.tensor([-K3_TANGENT_GAP], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    value = kl_estimate(edge, zero, "k3")
    (slope,) = torch.autograd.grad(value.sum(), edge)
    torch.testing.assert_close(value, torch.tensor([math.exp(10) - 1 - 10], dtype=torch.float64))
    torch.testing.assert_close(slope, torch.tensor([1 - math.exp(10)], dtype=torch.float64))
    torch.testing.assert_close(kl_estimate(edge - 5, zero, "k3"), value - 5 * slope)


@given(gap=st.floats(-9.9, 50.0))
def test_k3_is_exact_up_to_the_tangent_and_never_negative(gap: float) -> None:
    logprobs = torch.tensor([gap], dtype=torch.float64)
    estimate = kl_estimate(logprobs, torch.zeros(1, dtype=torch.float64), "k3").item()
    assert estimate == pytest.approx(math.exp(-gap) - 1 + gap, rel=1e-9, abs=1e-12)
    assert estimate >= -1e-15


def test_reference_is_a_constant_and_half_precision_is_widened() -> None:
    logprobs = torch.tensor([-1.0], dtype=torch.bfloat16, requires_grad=True)
    ref_logprobs = torch.tensor([-2.0], requires_grad=True)
    estimate = kl_estimate(logprobs, ref_logprobs, "k3")
    estimate.sum().backward()
    assert estimate.dtype == torch.float32
    assert ref_logprobs.grad is None


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="kind='k4'"):
        kl_estimate(torch.zeros(2), torch.zeros(2), "k4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"ref_logprobs has shape \(1,\)"):
        kl_estimate(torch.zeros(2), torch.zeros(1), "k3")
