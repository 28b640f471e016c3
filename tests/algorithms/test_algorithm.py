import math
from functools import partial
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from zerosearch.algorithms.advantages import grpo, reinforce, rloo
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.importance import ImportanceCorrection
from zerosearch.algorithms.losses import gspo, ppo_clip
from zerosearch.types import PolicyBatch

ANY_LOSS: Any = ppo_clip  # options are checked when it is called
MASK = torch.tensor([[False, True, True, False], [False, True, False, True]])


def make_batch(rows: slice = slice(None), **changes) -> PolicyBatch:
    tensors: dict[str, Any] = {
        "input_ids": torch.arange(8).reshape(2, 4),
        "attention_mask": torch.ones(2, 4, dtype=torch.bool),
        "sampled_mask": MASK,
        "behaviour_logprobs": torch.full((2, 4), -1.1),
        "advantages": torch.tensor([[1.0], [-2.0]]).expand(2, 4),
        "old_logprobs": torch.full((2, 4), -1.0),
        "ref_logprobs": torch.full((2, 4), -1.5),
    } | changes
    chosen: dict[str, Any] = {
        name: None if value is None else value[rows] for name, value in tensors.items()
    }
    return PolicyBatch(**chosen)


LOGPROBS = torch.full((2, 4), -1.0)
ENTROPY = torch.tensor([[9.0, 1.0, 2.0, 9.0], [9.0, 3.0, 9.0, 6.0]])
POLICY_LOSS = -(1.0 + 1.0 - 2.0 - 2.0) / 4  # ratio 1 everywhere
K3 = math.exp(-0.5) - 1 + 0.5  # log-prob -1.0, reference -1.5
MEAN_ENTROPY = (1.0 + 2.0 + 3.0 + 6.0) / 4


def test_kl_is_added_and_entropy_subtracted() -> None:
    algorithm = Algorithm(group_size=2, kl_coefficient=0.1, entropy_coefficient=0.01)
    batch = make_batch()
    normalizer = algorithm.local_normalizer(batch.sampled_mask)
    loss, metrics = algorithm.token_loss(LOGPROBS, ENTROPY, batch, normalizer)
    assert normalizer.item() == 4.0
    assert loss.item() == pytest.approx(POLICY_LOSS + 0.1 * K3 - 0.01 * MEAN_ENTROPY)
    expected = {
        "policy_loss": POLICY_LOSS,
        "tokens": 4.0,
        "ratio_sum": 4.0,
        "clipped_sum": 0.0,
        "tail_sum": 0.0,
        "kl_sum": 4 * K3,
        "entropy_sum": 4 * MEAN_ENTROPY,
        "logprob_gap_sum": 4 * 0.1,
        "sampled_tokens": 4.0,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)


def test_kl_uses_the_same_aggregation_as_the_policy_term() -> None:
    mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    batch = make_batch(
        sampled_mask=mask,
        advantages=torch.zeros(2),
        ref_logprobs=torch.tensor([[-1.0], [-3.0]]).expand(2, 4),
    )
    for aggregation, length, expected in (
        ("token-mean", None, 2.0 / 5),
        ("sequence-mean", None, (0.0 + 2.0) / 2),
        ("constant", 10, 2.0 / 20),
    ):
        algorithm = Algorithm(
            group_size=2,
            kl_coefficient=1.0,
            kl_kind="abs",
            aggregation=aggregation,  # pyright: ignore[reportArgumentType]
            constant_length=length,
        )
        normalizer = algorithm.local_normalizer(mask)
        loss, _ = algorithm.token_loss(LOGPROBS, ENTROPY, batch, normalizer)
        assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_defect_01_a_step_on_the_whole_loss_moves_towards_the_reference(kind) -> None:
    """A table policy over 4 tokens, advantages 0: only the KL acts, and the step must reduce it."""
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    logits = torch.tensor([0.9, -0.4, 0.3, -1.2], requires_grad=True)
    policy = logits.log_softmax(-1)
    tokens = policy.exp().multinomial(
        20_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    shape = (20_000, 1)
    algorithm = Algorithm(group_size=2, kl_kind=kind)
    sampled = policy[tokens].reshape(shape)
    batch = PolicyBatch(
        input_ids=tokens.reshape(shape),
        attention_mask=torch.ones(shape, dtype=torch.bool),
        sampled_mask=torch.ones(shape, dtype=torch.bool),
        behaviour_logprobs=sampled.detach(),
        advantages=torch.zeros(shape),
        ref_logprobs=reference[tokens].reshape(shape),
    )
    loss, _ = algorithm.token_loss(sampled, torch.zeros(shape), batch, normalizer=20_000)
    (gradient,) = torch.autograd.grad(loss, logits)

    def kl(table: torch.Tensor) -> float:
        logprobs = table.detach().log_softmax(-1)
        return (logprobs.exp() * (logprobs - reference)).sum().item()

    step = 0.1 / algorithm.kl_coefficient
    assert kl(logits - step * gradient) < kl(logits) < kl(logits + step * gradient)


def test_defect_10_token_loss_adds_up_over_micro_batches() -> None:
    algorithm = Algorithm(group_size=2, kl_coefficient=0.1, entropy_coefficient=0.01)
    normalizer = algorithm.local_normalizer(MASK)

    def run(rows: slice, logprobs: torch.Tensor):
        batch = make_batch(rows, sampled_mask=MASK | torch.tensor([[True], [False]]))
        return algorithm.token_loss(logprobs[rows], ENTROPY[rows], batch, normalizer)

    whole, split = (LOGPROBS.clone().requires_grad_() for _ in range(2))
    loss, metrics = run(slice(0, 2), whole)
    loss.backward()
    parts = [run(rows, split) for rows in (slice(0, 1), slice(1, 2))]
    for part, _ in parts:
        part.backward()
    torch.testing.assert_close(sum(part for part, _ in parts), loss.detach())
    torch.testing.assert_close(split.grad, whole.grad)
    for name, value in metrics.items():
        torch.testing.assert_close(sum(part[name] for _, part in parts), value)


def test_without_kl_no_reference_is_needed() -> None:
    algorithm = Algorithm(group_size=2, kl_coefficient=0.0)
    assert not algorithm.needs_reference
    loss, metrics = algorithm.token_loss(LOGPROBS, ENTROPY, make_batch(ref_logprobs=None), 4.0)
    assert loss.item() == pytest.approx(POLICY_LOSS)
    assert "kl_sum" not in metrics


def test_missing_reference_log_probs_are_an_error() -> None:
    algorithm = Algorithm(group_size=2)
    assert algorithm.needs_reference
    with pytest.raises(ValueError, match=r"ref_logprobs is None but kl_coefficient=0\.001"):
        algorithm.token_loss(LOGPROBS, ENTROPY, make_batch(ref_logprobs=None), 4.0)


def test_a_single_update_needs_no_old_log_probs() -> None:
    algorithm = Algorithm(group_size=2)
    logprobs = LOGPROBS.clone().requires_grad_()
    loss, metrics = algorithm.token_loss(logprobs, ENTROPY, make_batch(old_logprobs=None), 4.0)
    loss.backward()
    assert not algorithm.needs_old_logprobs
    assert metrics["ratio_sum"].item() == 4.0
    assert logprobs.grad is not None
    assert logprobs.grad[MASK].abs().min() > 0


@pytest.mark.parametrize("updates", [{"inner_epochs": 2}, {"mini_batches": 2}])
def test_several_updates_need_old_log_probs(updates: dict[str, Any]) -> None:
    algorithm = Algorithm(group_size=2, **updates)
    assert algorithm.needs_old_logprobs
    with pytest.raises(ValueError, match="old_logprobs is None"):
        algorithm.token_loss(LOGPROBS, ENTROPY, make_batch(old_logprobs=None), 4.0)


def test_the_importance_correction_weighs_the_policy_term() -> None:
    correction = ImportanceCorrection(high=1.05)
    algorithm = Algorithm(group_size=2, kl_coefficient=0.0, importance_correction=correction)
    loss, metrics = algorithm.token_loss(LOGPROBS, ENTROPY, make_batch(), 4.0)
    assert loss.item() == pytest.approx(POLICY_LOSS * 1.05)  # exp(-1.0 + 1.1) = 1.105 > 1.05
    assert metrics["importance_sum"].item() == pytest.approx(4 * 1.05)
    assert metrics["importance_cut_sum"].item() == 4
    plain = Algorithm(group_size=2, kl_coefficient=0.0)
    assert "importance_sum" not in plain.token_loss(LOGPROBS, ENTROPY, make_batch(), 4.0)[1]


def test_kl_and_entropy_are_not_weighted() -> None:
    terms: dict[str, Any] = {"group_size": 2, "kl_coefficient": 0.5, "entropy_coefficient": 0.1}
    nothing = ImportanceCorrection(kind="mask", high=1.05)  # masks every token
    loss, _ = Algorithm(**terms, importance_correction=nothing).token_loss(
        LOGPROBS, ENTROPY, make_batch(), 4.0
    )
    assert loss.item() == pytest.approx(0.5 * K3 - 0.1 * MEAN_ENTROPY)


@pytest.mark.parametrize(("kind", "kl"), [("k2", 0.5**2 / 2), ("k3", K3)])
def test_padding_and_inserted_tokens_are_never_read(kind, kl: float) -> None:
    algorithm = Algorithm(group_size=2, entropy_coefficient=0.01, kl_kind=kind)
    hole = ~MASK
    logprobs = LOGPROBS.masked_fill(hole, -math.inf).requires_grad_()
    batch = make_batch(
        behaviour_logprobs=torch.full((2, 4), -1.1).masked_fill(hole, math.nan),
        ref_logprobs=torch.full((2, 4), -1.5).masked_fill(hole, -math.inf),
        old_logprobs=None,
    )
    entropy = ENTROPY.masked_fill(hole, math.nan)
    loss, metrics = algorithm.token_loss(logprobs, entropy, batch, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(POLICY_LOSS + 0.001 * kl - 0.01 * MEAN_ENTROPY)
    assert all(value.isfinite() for value in metrics.values())
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad[hole].tolist() == [0.0] * 4


def test_empty_micro_batch_has_a_gradient_path_and_the_same_metrics() -> None:
    algorithm = Algorithm(group_size=2, entropy_coefficient=0.01)
    logprobs, entropy = (x.clone().requires_grad_() for x in (LOGPROBS, ENTROPY))
    batch = make_batch(sampled_mask=torch.zeros_like(MASK))
    loss, metrics = algorithm.token_loss(logprobs, entropy, batch, 4.0)
    loss.backward()
    assert loss.item() == 0.0
    assert logprobs.grad is not None
    assert entropy.grad is not None
    assert metrics.keys() == algorithm.token_loss(LOGPROBS, ENTROPY, make_batch(), 4.0)[1].keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 0}, "group_size=0"),
        ({"inner_epochs": 0}, "inner_epochs=0"),
        ({"mini_batches": -1}, "mini_batches=-1"),
        ({"kl_coefficient": -0.001}, r"kl_coefficient=-0\.001"),
        ({"kl_coefficient": math.nan}, "kl_coefficient=nan"),
        ({"entropy_coefficient": math.inf}, "entropy_coefficient=inf"),
        ({"kl_kind": "k4"}, "kl_kind='k4'"),
        ({"kl_kind": "k1"}, r"kl_kind='k1'.*use k2 or k3"),
        ({"aggregation": "mean"}, "aggregation='mean'"),
        ({"aggregation": "constant"}, "constant_length=None"),
        ({"constant_length": 500}, r"constant_length=500 has no effect"),
        ({"advantage": partial(grpo, scale="max")}, "scale='max'"),  # pyright: ignore
        ({"group_size": 1}, "group_size=1 leaves grpo no siblings.*algorithm=reinforce"),
        ({"group_size": 1, "advantage": rloo}, "group_size=1 leaves rloo"),
        ({"resampling_rounds": -1}, r"resampling_rounds=-1"),
        (
            {"group_size": 1, "advantage": reinforce, "resampling_rounds": 2},
            r"resampling_rounds=2 replaces.*group_size=1.*sample 2 or more",
        ),
        (
            {"group_size": 1, "advantage": partial(reinforce, baseline="leave_one_out")},
            "group_size=1 leaves reinforce",
        ),
        (
            {"loss": gspo, "importance_correction": ImportanceCorrection()},
            r"loss gspo.*importance_correction\.level=sequence",
        ),
        ({"loss": partial(ppo_clip, clip_low=2.0)}, r"clip_low=2\.0"),
        ({"loss": partial(ANY_LOSS, aggregation="constant")}, r"loss\.aggregation would be"),
    ],
)
def test_bad_settings_are_refused_before_any_model_is_loaded(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Algorithm(**({"group_size": 4} | settings))


def test_k1_is_accepted_where_the_kl_is_only_watched() -> None:
    algorithm = Algorithm(group_size=2, kl_coefficient=0.0, kl_kind="k1")
    loss, metrics = algorithm.token_loss(LOGPROBS, ENTROPY, make_batch(), 4.0)
    assert metrics["kl_sum"].item() == pytest.approx(4 * 0.5)
    assert loss.item() == pytest.approx(POLICY_LOSS)


def test_algorithm_is_made_from_yaml() -> None:
    node = OmegaConf.create(
        """
        _target_: zerosearch.algorithms.algorithm.Algorithm
        group_size: 5
        advantage: {_target_: zerosearch.algorithms.advantages.reinforce, _partial_: true, baseline: leave_one_out}
        loss: {_target_: zerosearch.algorithms.losses.ppo_clip, _partial_: true, clip_high: 0.28}
        aggregation: constant
        constant_length: 500
        """  # noqa: E501
    )
    algorithm = hydra.utils.instantiate(node)
    rewards, groups = torch.tensor([0.0, 1.0]), torch.tensor([4, 4])
    advantages = algorithm.advantage(rewards, groups, None)
    torch.testing.assert_close(advantages, rloo(rewards, groups))
    assert algorithm.local_normalizer(MASK).item() == 1000.0
    assert algorithm.kl_coefficient == 0.001
