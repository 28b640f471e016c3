"""Loss and gradient agree with those of TRL's GRPOTrainer, an independent implementation."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.losses import cispo, gspo, ppo_clip
from zerosearch.types import PolicyBatch

ROWS, LENGTH = 9, 14
CLIP = partial(ppo_clip, clip_low=0.2, clip_high=0.28)
DUAL_CLIP = partial(ppo_clip, clip_low=0.2, clip_high=0.28, dual_clip=1.6)

# our settings, and TRL's names for the same
CASES = {
    "token-mean": ({"loss": CLIP}, {"loss_type": "bnpo"}),
    "sequence-mean": ({"loss": CLIP, "aggregation": "sequence-mean"}, {"loss_type": "grpo"}),
    "constant": (
        {"loss": CLIP, "aggregation": "constant", "constant_length": 50},
        {"loss_type": "dr_grpo"},
    ),
    "dual clip": ({"loss": DUAL_CLIP}, {"loss_type": "bnpo", "delta": 1.6}),
    "gspo": (
        {"loss": partial(gspo, clip_low=0.05, clip_high=0.04), "aggregation": "sequence-mean"},
        {"loss_type": "grpo", "level": "sequence", "low": 0.05, "high": 0.04},
    ),
    "cispo": ({"loss": partial(cispo, ratio_high=1.3)}, {"loss_type": "cispo", "high": 1.3}),
}


def make_batch(seed: int) -> PolicyBatch:
    """Trajectories in which sampled tokens alternate with inserted ones."""
    draw = torch.Generator().manual_seed(seed)
    shape = (ROWS, LENGTH)
    lengths = torch.randint(4, LENGTH + 1, (ROWS, 1), generator=draw)
    attention = torch.arange(LENGTH) < lengths
    sampled = attention & (torch.rand(shape, generator=draw) < 0.6)
    sampled[:, 0] = True  # TRL's mean over sequences counts those without a token, too
    old = -3 * torch.rand(shape, generator=draw, dtype=torch.float64)
    return PolicyBatch(
        input_ids=torch.randint(0, 50, shape, generator=draw),
        attention_mask=attention,
        sampled_mask=sampled,
        behaviour_logprobs=old,
        advantages=torch.randn(ROWS, generator=draw, dtype=torch.float64),
        old_logprobs=old,
        ref_logprobs=old + 0.5 * torch.randn(shape, generator=draw, dtype=torch.float64),
    )


def trl_loss(
    logprobs: Tensor,
    batch: PolicyBatch,
    *,
    loss_type: str,
    beta: float,
    level: str = "token",
    low: float = 0.2,
    high: float = 0.28,
    delta: float | None = None,
) -> Tensor:
    """`GRPOTrainer._compute_loss` with the given log-probs in place of a model."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer: Any = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            logprobs,
            torch.zeros_like(logprobs),
            None,
        ),
        accelerator=SimpleNamespace(
            gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1
        ),
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1),
        model=torch.nn.Identity().eval(),
        loss_type=loss_type,
        beta=beta,
        importance_sampling_level=level,
        epsilon_low=low,
        epsilon_high=high,
        max_completion_length=50,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "prompt_ids": batch.input_ids[:, :0],
        "prompt_mask": batch.attention_mask[:, :0],
        "completion_ids": batch.input_ids,
        "completion_mask": batch.attention_mask,
        "tool_mask": batch.sampled_mask,
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old_logprobs,
        "ref_per_token_logps": batch.ref_logprobs,
        "num_items_in_batch": batch.sampled_mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


@pytest.mark.slow  # importing TRL takes some ten seconds
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")  # TRL's own
def test_loss_and_gradient_are_those_of_trl(case: str, beta: float) -> None:
    ours, theirs = CASES[case]
    algorithm = Algorithm(group_size=4, kl_coefficient=beta, **ours)
    for seed in range(5):
        batch = make_batch(seed)
        noise = torch.randn((ROWS, LENGTH), generator=torch.Generator().manual_seed(100 + seed))
        start = batch.behaviour_logprobs + 0.4 * noise
        mine, other = start.clone().requires_grad_(), start.clone().requires_grad_()
        normalizer = algorithm.local_normalizer(batch.sampled_mask).double()
        loss, metrics = algorithm.token_loss(mine, torch.zeros_like(mine), batch, normalizer)
        expected = trl_loss(other, batch, beta=beta, **theirs)
        loss.backward()
        expected.backward()
        assert mine.grad is not None and other.grad is not None
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-9)
        assert 0 < metrics["clipped_sum"] < metrics["tokens"], "the bounds are at work"
