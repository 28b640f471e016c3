"""Policy steps with a critic, with the KL in the reward, and with a reference that changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import (
    CopiedPolicy,
    Records,
    fit,
    make_data,
    make_questions,
    make_training,
    weights,
)
from tests.helpers.words import make_word_model, make_word_tokenizer
from zerosearch.algorithms.advantages import reinforce
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.critic import CriticSettings
from zerosearch.algorithms.kl_control import AdaptiveKL
from zerosearch.algorithms.values import generalized_advantages
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.training.module import SearchPolicyModule
from zerosearch.training.optimization import check_strategy
from zerosearch.training.rank_watch import ReplicatedStrategy
from zerosearch.training.schedule import warmup_schedule
from zerosearch.training.step_record import StepRecord

DECAYING = partial(warmup_schedule, decay="linear")


def make_critic(**fields: Any) -> CriticSettings:
    settings = {"optimizer": partial(torch.optim.Adam, lr=1e-2), "schedule": DECAYING}
    return CriticSettings(**{**settings, **fields})


def make_ppo(critic: CriticSettings | None = None, **fields: Any) -> Algorithm:
    settings = {
        "group_size": 4,
        "advantage": generalized_advantages,
        "critic": critic or make_critic(),
        "kl_in": "reward",
        "kl_kind": "k1",
        "kl_coefficient": 0.01,
    }
    return Algorithm(**{**settings, **fields})


def make(algorithm: Algorithm, **fields: Any) -> SearchPolicyModule:
    policy = CopiedPolicy(make_word_model(), make_word_tokenizer())
    return make_training(policy=policy, algorithm=algorithm, schedule=DECAYING, **fields)


def train_saving(
    algorithm: Algorithm, folder: Path, resume: Path | None = None, steps: int = 4
) -> tuple[SearchPolicyModule, list[StepRecord]]:
    module = make(algorithm, policy_steps=steps)
    saving, records = PolicyCheckpoint(folder, every_n_steps=2, keep=None), Records()
    trainer = make_trainer(steps, callbacks=[saving, records], val_every=None)
    data = make_data(make_questions(6), questions_per_step=3)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module, records.steps


def assert_same_weights(one: SearchPolicyModule, other: SearchPolicyModule) -> None:
    """Of everything: policy, reference, critic."""
    expected = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


# -- a critic -------------------------------------------------------------------------------------


def test_the_critic_learns_what_episodes_bring_and_the_policy_to_bring_more() -> None:
    module = make(make_ppo(), policy_steps=40)
    records = fit(module, make_questions(8))
    reward = [record.metrics["reward/f1"] for record in records]
    assert sum(reward[-5:]) > sum(reward[:5]) + 2.0
    explained = [record.metrics["critic/explained_variance"] for record in records]
    assert abs(explained[0]) < 1e-6, "all values are 0 at first"
    assert max(explained[10:20]) > 0.3


def test_both_have_an_optimizer_and_a_schedule_of_their_own() -> None:
    module = make(make_ppo(make_critic(warmup_steps=1), mini_batches=2), policy_steps=3)
    records = fit(module, make_questions(4))
    optimizers: Any = module.optimizers()
    policy, critic = optimizers
    assert isinstance(policy.optimizer, torch.optim.SGD)
    assert isinstance(critic.optimizer, torch.optim.Adam)
    assert critic.state[next(iter(critic.state))]["step"] == 6
    rates = [record.metrics["critic/learning_rate"] for record in records]
    assert rates == pytest.approx([1e-2 * (1 - (2 * n + 0.5) / 6) for n in range(3)])
    assert "optimizer/learning_rate" not in records[0].metrics
    rates = [record.metrics["optimizer/learning_rate"] for record in records[1:]]
    assert rates == pytest.approx([0.1 * (1 - (2 * n + 0.5) / 4) for n in range(2)])


def test_while_the_critic_warms_up_the_policy_rests() -> None:
    module = make(make_ppo(make_critic(warmup_steps=2)), policy_steps=3)
    before, seen = make_word_model().state_dict(), []

    class Watch(Records):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            now = weights(pl_module)
            seen.append(all(torch.equal(now[name], before[name]) for name in now))

    fit(module, make_questions(4), Watch())
    assert seen == [True, True, False]


def test_invariant_13_a_resumed_run_has_the_same_critic(tmp_path: Path) -> None:
    whole, early = train_saving(make_ppo(), tmp_path)
    second, late = train_saving(make_ppo(), tmp_path, tmp_path / "step_000002.ckpt")
    assert_same_weights(second, whole)
    for one, other in zip(late, early[2:], strict=True):
        assert one.metrics["critic/loss"] == other.metrics["critic/loss"]


def test_records_show_the_mean_advantage_of_a_trajectory() -> None:
    [record] = fit(make(make_ppo()), make_questions(4))
    assert len(record.advantages) == 16 and any(record.advantages)


def test_a_critic_that_warms_up_for_ever_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_steps=3 leaves none of policy_steps=3"):
        make(make_ppo(make_critic(warmup_steps=3)), policy_steps=3)


def test_plain_ddp_is_refused_with_a_critic() -> None:
    with pytest.raises(ValueError, match=r"strategy.find_unused_parameters=true"):
        check_strategy(make_ppo(), ReplicatedStrategy())
    check_strategy(make_ppo(), ReplicatedStrategy(find_unused_parameters=True))
    check_strategy(Algorithm(group_size=2), ReplicatedStrategy())


# -- the KL in the reward -------------------------------------------------------------------------


def test_the_kl_in_the_reward_alone_pulls_the_policy_to_its_reference() -> None:
    """Every reward is 0 but for the penalty."""

    class Perturb(Records):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            noise = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in pl_module.model.parameters():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=noise)

    algorithm = Algorithm(
        group_size=8,
        advantage=partial(reinforce, baseline="batch"),
        kl_in="reward",
        kl_kind="k1",
        kl_coefficient=1.0,
    )
    module = make(algorithm, policy_steps=30)
    records = fit(module, make_questions(8, golden="nothing"), Perturb())
    kl = [record.metrics["loss/kl"] for record in records]
    assert all(record.metrics["reward/total"] == 0.0 for record in records)
    assert sum(kl[-5:]) < 0.5 * sum(kl[:5])
    penalty = [record.metrics["reward/kl_penalty"] for record in records]
    assert penalty[0] > 0 and sum(penalty[-5:]) < 0.5 * sum(penalty[:5])


# -- a coefficient and a reference that change ----------------------------------------------------


CONTROLLED = Algorithm(group_size=4, kl_coefficient=0.5, kl_control=AdaptiveKL(target=1e-9))


def test_the_coefficient_is_raised_while_the_kl_is_above_its_target() -> None:
    records = fit(make(CONTROLLED, policy_steps=3), make_questions(3))
    # the policy is its reference in the first step: a KL of 0 is below the target
    expected = [0.5, 0.5 * 0.98, 0.5 * 0.98 * 1.02]
    assert [r.metrics["loss/kl_coefficient"] for r in records] == pytest.approx(expected)


def test_invariant_13_a_resumed_run_has_the_same_coefficient(tmp_path: Path) -> None:
    whole, early = train_saving(CONTROLLED, tmp_path)
    second, late = train_saving(CONTROLLED, tmp_path, tmp_path / "step_000002.ckpt")
    assert_same_weights(second, whole)
    name = "loss/kl_coefficient"
    assert [r.metrics[name] for r in late] == [r.metrics[name] for r in early[2:]]


def test_the_reference_becomes_the_policy_every_n_steps(tmp_path: Path) -> None:
    algorithm = Algorithm(group_size=4, kl_coefficient=0.1, reference_reset_steps=2)
    whole, records = train_saving(algorithm, tmp_path, steps=5)
    kl = [record.metrics["loss/kl"] for record in records]
    assert [value < 1e-12 for value in kl] == [True, False, True, False, True]
    second, _ = train_saving(algorithm, tmp_path, tmp_path / "step_000002.ckpt", steps=5)
    assert_same_weights(second, whole)


def test_a_reference_without_weights_of_its_own_cannot_be_reset() -> None:
    policy = CopiedPolicy(make_word_model(), make_word_tokenizer())
    policy.lora = LoraConfig(r=2)
    algorithm = Algorithm(group_size=2, reference_reset_steps=5)
    with pytest.raises(ValueError, match=r"reference_reset_steps=5: with model\.lora"):
        make_training(policy=policy, algorithm=algorithm)


# -- documents ------------------------------------------------------------------------------------


def test_documents_are_trained_on_only_where_asked_for() -> None:
    tokens = {}
    for with_documents in (False, True):
        algorithm = Algorithm(group_size=8, train_on_documents=with_documents)
        module = make(algorithm)
        [record] = fit(module, make_questions(4))
        tokens[with_documents] = record.metrics["loss/entropy"]
        assert record.metrics["rollout/logprob_gap"] == pytest.approx(0.0, abs=1e-5)
    assert tokens[False] != tokens[True]
