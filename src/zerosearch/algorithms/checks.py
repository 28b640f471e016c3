"""What an algorithm's settings must satisfy, alone and together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch

from zerosearch.algorithms.advantages import grpo, reinforce, reinforce_pp_baseline, rloo
from zerosearch.algorithms.kl import KLKind
from zerosearch.algorithms.losses import gspo
from zerosearch.algorithms.settings import AlgorithmSettings
from zerosearch.algorithms.values import generalized_advantages
from zerosearch.core.errors import InputError

_SET_BY_ALGORITHM = ("normalizer", "aggregation", "behaviour_logprobs", "importance_correction")


def check_algorithm(algorithm: AlgorithmSettings) -> None:
    """Raise before any model is loaded what would fail, or be ignored, in training.

    Raises:
        InputError: names the setting, its value and the remedy.
    """
    for name in ("group_size", "inner_epochs", "mini_batches"):
        value = getattr(algorithm, name)
        if value < 1:
            raise InputError(f"{name}={value}: must be at least 1")
    for name in ("kl_coefficient", "entropy_coefficient"):
        value = getattr(algorithm, name)
        if not 0.0 <= value < float("inf"):
            raise InputError(f"{name}={value}: must be a finite number, 0 to switch it off")
    _check_group(algorithm)
    _check_critic(algorithm)
    _check_kl(algorithm)
    _check_reference(algorithm)
    _check_aggregation(algorithm)
    _check_importance(algorithm)
    _try_functions(algorithm)


def uses_critic(algorithm: AlgorithmSettings) -> bool:
    """Whether advantages come from values rather than from a comparison of rewards."""
    return _function(algorithm.advantage) is generalized_advantages


def _function(node: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(node, "func", node)


def _check_group(algorithm: AlgorithmSettings) -> None:
    function = _function(algorithm.advantage)
    options = getattr(algorithm.advantage, "keywords", {})
    rounds = algorithm.resampling_rounds
    if rounds < 0:
        raise InputError(f"resampling_rounds={rounds}: give 0 (off) or more")
    if rounds and algorithm.group_size == 1:
        raise InputError(
            f"resampling_rounds={rounds} replaces groups of equal rewards, but group_size=1 leaves "
            "nothing to compare: sample 2 or more, or set resampling_rounds to 0"
        )
    compares = function in (grpo, rloo, reinforce_pp_baseline) or (
        function is reinforce and options.get("baseline") == "leave_one_out"
    )
    if compares and algorithm.group_size == 1:
        raise InputError(
            f"group_size=1 leaves {function.__name__} no siblings to compare a reward with: "
            "sample 2 or more, or use algorithm=reinforce"
        )


def _check_critic(algorithm: AlgorithmSettings) -> None:
    if uses_critic(algorithm) and algorithm.critic is None:
        raise InputError(
            "critic=null, but advantage generalized_advantages needs values: set "
            "algorithm/critic=default, or use algorithm/advantage=grpo"
        )
    if algorithm.critic is not None and not uses_critic(algorithm):
        raise InputError(
            f"critic is set, but advantage {_function(algorithm.advantage).__name__} does not read "
            "its values: set algorithm/advantage=gae, or algorithm.critic=null"
        )


def _check_kl(algorithm: AlgorithmSettings) -> None:
    kinds = get_args(KLKind)
    if algorithm.kl_kind not in kinds:
        raise InputError(f"kl_kind={algorithm.kl_kind!r} is unknown: use one of {', '.join(kinds)}")
    if algorithm.kl_in not in ("loss", "reward"):
        raise InputError(f"kl_in={algorithm.kl_in!r} is unknown: use loss or reward")
    if algorithm.kl_kind == "k1" and algorithm.needs_reference and algorithm.kl_in == "loss":
        raise InputError(
            "kl_kind='k1' has expected gradient 0 as a loss and cannot pull towards the "
            "reference: use k2 or k3, set kl_in to reward, or kl_coefficient to 0"
        )


def _check_reference(algorithm: AlgorithmSettings) -> None:
    reset = algorithm.reference_reset_steps
    if reset is not None and reset < 1:
        raise InputError(f"reference_reset_steps={reset}: give 1 or more, or null for never")
    for name in ("kl_control", "reference_reset_steps"):
        if getattr(algorithm, name) is not None and not algorithm.needs_reference:
            raise InputError(
                f"{name} is set, but kl_coefficient=0 leaves the run without a reference policy: "
                f"set kl_coefficient above 0, or {name} to null"
            )


def _check_aggregation(algorithm: AlgorithmSettings) -> None:
    if algorithm.aggregation != "constant" and algorithm.constant_length is not None:
        raise InputError(
            f"constant_length={algorithm.constant_length} has no effect with aggregation="
            f"{algorithm.aggregation!r}: use aggregation 'constant' or set constant_length to null"
        )
    algorithm.local_normalizer(torch.ones(1, 1))


def _check_importance(algorithm: AlgorithmSettings) -> None:
    correction = algorithm.importance_correction
    if correction is None:
        return
    if algorithm.train_on_documents:
        raise InputError(
            "train_on_documents=true: nobody sampled the documents, so there is no probability "
            "for importance_correction to compare with; set importance_correction to null"
        )
    if correction.level == "token" and _function(algorithm.loss) is gspo:
        raise InputError(
            "importance_correction.level='token' would weigh tokens inside the sequences that "
            "the loss gspo compares as wholes: set importance_correction.level=sequence"
        )


def _try_functions(algorithm: AlgorithmSettings) -> None:
    """Call both functions once: a wrong option fails here."""
    given = [name for name in _SET_BY_ALGORITHM if name in getattr(algorithm.loss, "keywords", {})]
    if given:
        raise InputError(f"loss.{given[0]} would be ignored: set algorithm.{given[0]} instead")
    two, one = torch.ones(2), torch.ones(1, 1)
    if uses_critic(algorithm):
        algorithm.advantage(one, one, one.bool())
    else:
        algorithm.advantage(two, two.long(), two.bool())
    algorithm.loss(one, one, one, one.bool())
