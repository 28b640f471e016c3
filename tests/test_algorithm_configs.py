"""Algorithms as they are composed on the command line: what each is made of, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from tests.helpers.configs import CONFIGS, compose_config
from zerosearch.algorithms.advantages import reinforce as raw_reinforce
from zerosearch.algorithms.advantages import rloo
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.kl_control import AdaptiveKL
from zerosearch.algorithms.losses import cispo, gspo, ppo_clip, reinforce
from zerosearch.algorithms.values import generalized_advantages
from zerosearch.assembly import assemble
from zerosearch.training.module import SearchPolicyModule


def make_algorithm(folder: Path, *overrides: str) -> Algorithm:
    return hydra.utils.instantiate(compose_config(folder, *overrides).algorithm, _convert_="all")


def make_module(folder: Path, *overrides: str) -> SearchPolicyModule:
    return assemble(compose_config(folder, *overrides)).module


@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_an_importance_correction_is_one_override(kind: str, tmp_path: Path) -> None:
    group = f"algorithm/importance_correction={kind}"
    level = "algorithm.importance_correction.level=sequence"
    correction = make_algorithm(tmp_path, group, level).importance_correction
    assert correction is not None
    assert (correction.kind, correction.level) == (kind, "sequence")
    assert make_algorithm(tmp_path).importance_correction is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", [2**-0.5, -(2**-0.5), 0.0]),  # 0.5 / std; a group of one has nobody to beat
        ("reinforce", [2 / 3, -1 / 3, -1 / 3]),
        ("control", [0.0, 0.0, 0.0]),
        ("dr_grpo", [0.5, -0.5, 0.0]),
        ("rloo", [1.0, -1.0, 0.0]),
        ("reinforce_pp", [2 / 3 * 3**0.5, -(3**0.5) / 3, -(3**0.5) / 3]),  # std 1 / sqrt(3)
        ("reinforce_pp_baseline", [1.0, -1.0, 0.0]),  # std 0.5
        ("gspo", [2**-0.5, -(2**-0.5), 0.0]),
        ("cispo", [2**-0.5, -(2**-0.5), 0.0]),
        ("dapo", [2**-0.5, -(2**-0.5), 0.0]),
    ],
)
def test_each_algorithm_compares_rewards_its_own_way(
    name: str, expected: list[float], tmp_path: Path
) -> None:
    algorithm = make_algorithm(tmp_path, f"algorithm={name}")
    rewards, groups = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 1])
    found = algorithm.advantage(rewards, groups, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "loss", "aggregation"),
    [
        ("grpo", ppo_clip, "token-mean"),
        ("dapo", ppo_clip, "token-mean"),
        ("dr_grpo", ppo_clip, "constant"),
        ("gspo", gspo, "sequence-mean"),
        ("cispo", cispo, "token-mean"),
        ("rloo", reinforce, "token-mean"),
    ],
)
def test_each_algorithm_has_its_loss(
    name: str, loss: Any, aggregation: str, tmp_path: Path
) -> None:
    algorithm: Any = make_algorithm(tmp_path, f"algorithm={name}")
    assert algorithm.loss.func is loss and algorithm.aggregation == aggregation


def test_dapo_clips_higher_and_draws_spares_for_its_rounds(tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, "algorithm=dapo")
    assert (cfg.algorithm.loss.clip_low, cfg.algorithm.loss.clip_high) == (0.2, 0.28)
    assert cfg.algorithm.resampling_rounds == 3
    assert make_module(tmp_path, "algorithm=dapo").spare_rounds == 3
    assert make_module(tmp_path).spare_rounds == 0
    # the experiment that is the default has a KL of its own
    assert OmegaConf.load(CONFIGS / "algorithm" / "dapo.yaml").kl_coefficient == 0.0  # type: ignore[union-attr]


def test_any_loss_goes_with_any_advantage(tmp_path: Path) -> None:
    algorithm: Any = make_algorithm(tmp_path, "algorithm=rloo", "algorithm/loss=cispo")
    assert (algorithm.advantage.func, algorithm.loss.func) == (rloo, cispo)
    make_algorithm(tmp_path, "algorithm=dapo", "algorithm/loss=cispo")


def test_ppo_has_a_critic_with_an_optimizer_of_its_own(tmp_path: Path) -> None:
    given = ["algorithm=ppo", "algorithm.critic.optimizer.lr=1e-3", "algorithm.advantage.trace=0.9"]
    algorithm: Any = make_algorithm(tmp_path, *given)
    assert algorithm.advantage.func is generalized_advantages
    assert algorithm.advantage.keywords == {"discount": 1.0, "trace": 0.9}
    assert (algorithm.kl_in, algorithm.kl_kind, algorithm.critic.value_clip) == (
        "reward",
        "k1",
        0.5,
    )
    optimizer = algorithm.critic.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_a_kl_control_is_one_override(tmp_path: Path) -> None:
    given = ["algorithm/kl_control=adaptive", "algorithm.kl_control.target=0.05"]
    assert make_algorithm(tmp_path, *given).kl_control == AdaptiveKL(target=0.05)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["algorithm=gspo", "algorithm/importance_correction=truncate"],
            r"importance_correction\.level='token'.*set importance_correction\.level=sequence",
        ),
        (["algorithm=ppo", "algorithm.critic=null"], r"critic=null.*algorithm/critic=default"),
        (["algorithm/critic=default"], r"critic is set, but advantage grpo"),
        (["algorithm=grpo", "algorithm.group_size=1"], r"group_size=1.*sample 2 or more"),
        (["algorithm=rloo", "algorithm.group_size=1"], r"group_size=1.*sample 2 or more"),
        (["algorithm=dapo", "algorithm.group_size=1"], r"resampling_rounds=3.*group_size=1"),
        (
            ["algorithm/kl_control=adaptive", "algorithm.kl_coefficient=0"],
            r"kl_control is set, but kl_coefficient=0.*kl_coefficient above 0",
        ),
        (
            ["algorithm.reference_reset_steps=5", "algorithm.kl_coefficient=0"],
            r"reference_reset_steps is set, but kl_coefficient=0",
        ),
        (["algorithm.kl_kind=k1"], r"kl_kind='k1'.*kl_in to reward"),
        (["algorithm.kl_in=returns"], r"kl_in='returns' is unknown: use loss or reward"),
        (["algorithm.advantage.scale=max"], r"scale='max' is unknown: use 'std' or 'none'"),
        (["algorithm=ppo", "algorithm.advantage.trace=2"], r"trace=2.*between 0 and 1"),
        (["algorithm=ppo", "algorithm.critic.value_clip=0"], r"critic\.value_clip=0"),
        (
            ["algorithm.train_on_documents=true", "algorithm/importance_correction=truncate"],
            r"train_on_documents=true.*importance_correction to null",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_mend(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InstantiationException, match=f"(?s){message}"):
        make_algorithm(tmp_path, *overrides)


# -- the authors' settings ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", "reinforce", "ppo"])
def test_the_authors_settings_go_over_those_of_any_experiment(name: str, tmp_path: Path) -> None:
    module = make_module(tmp_path, f"compat=paper_{name}")
    algorithm: Any = module.algorithm
    assert (module.policy_steps, algorithm.group_size, algorithm.updates_per_step) == (203, 5, 2)
    assert (module.sampling.temperature, module.sampling.top_p) == (1.0, 0.95)
    assert (algorithm.kl_coefficient, algorithm.entropy_coefficient) == (0.001, 0.001)
    assert algorithm.loss.keywords == {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
    optimizer = module.optimizer_factory([torch.nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (1e-6, 0.01)
    rates = [module.schedule_factory(optimizer, 1000).get_last_lr()[0]]
    assert rates[0] == pytest.approx(1e-6 / (285 if name == "ppo" else 950))


def test_the_authors_reinforce_has_no_baseline_but_a_clip(tmp_path: Path) -> None:
    algorithm: Any = make_algorithm(tmp_path, "compat=paper_reinforce")
    assert algorithm.advantage.func is raw_reinforce
    assert algorithm.advantage.keywords == {"baseline": "none"}
    assert algorithm.loss.func is ppo_clip
