"""Losses, log-probs and gradients on a GPU in float32 are those of the CPU."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.devices import everywhere
from tests.helpers.models import VOCABULARY, make_model
from tests.helpers.training import make_turns_trajectory
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.policy.logprobs import packs_sequences
from zerosearch.training.batching import collate
from zerosearch.training.micro_batches import MicroBatches
from zerosearch.training.update import PolicyUpdater
from zerosearch.types import PolicyBatch

TOLERANCE = 1e-4  # of float32 sums in another order, relative and absolute


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    """Matrices are multiplied in float32, not in TF32's 10 bits of mantissa."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def make_batch() -> PolicyBatch:
    """Eight episodes of two turns and unequal lengths, with advantages of both signs."""
    source = random.Random(0)

    def tokens(least: int, most: int) -> list[int]:
        return [source.randrange(VOCABULARY) for _ in range(source.randint(least, most))]

    episodes = [
        make_turns_trajectory([tokens(5, 40), tokens(5, 40)], [tokens(10, 60)]) for _ in range(8)
    ]
    for episode in episodes:
        episode.logprobs = [-5.0 if flag else 0.0 for flag in episode.sampled]
    batch = collate(episodes, pad_id=VOCABULARY - 1)
    signs = torch.tensor([1.0, -1.0] * 4)[:, None]
    batch.advantages = signs * batch.sampled_mask
    batch.old_logprobs = batch.ref_logprobs = batch.behaviour_logprobs
    return batch


def computed(
    model: nn.Module, batch: PolicyBatch, device: str, tokens: int
) -> tuple[dict[str, float], Tensor, dict[str, Tensor]]:
    """Metrics of the loss, log-probs [B, T], and gradients by name; all on the CPU."""
    model = copy.deepcopy(model).to(torch.device(device))
    updater = PolicyUpdater(
        algorithm=Algorithm(group_size=4, kl_coefficient=0.1, entropy_coefficient=0.01),
        micro_batches=MicroBatches(
            tokens=tokens, device=torch.device(device), packed=packs_sequences(model)
        ),
        chunk_tokens=64,
        temperature=1.0,
    )
    metrics = updater.accumulate(model, batch, lambda loss: loss.backward())
    gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    return metrics, updater.logprobs(model, batch).cpu(), gradients


@pytest.mark.parametrize("device", everywhere(cpu=()))
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_float32_on_a_gpu_is_that_of_the_cpu(device: str, attention: str) -> None:
    if device == "cpu" and attention == "flex_attention":
        pytest.skip("flex attention has no backward pass on CPUs")
    batch, model = make_batch(), make_model(3, scale=2.0)
    wanted = computed(model, batch, "cpu", 100_000)
    other = make_model(3, scale=2.0, attn_implementation=attention)
    found = computed(other, batch, device, 512)
    assert found[0] == pytest.approx(wanted[0], rel=TOLERANCE, abs=TOLERANCE)
    torch.testing.assert_close(found[1], wanted[1], rtol=TOLERANCE, atol=TOLERANCE)
    assert found[2].keys() == wanted[2].keys()
    for name, gradient in found[2].items():
        torch.testing.assert_close(
            gradient,
            wanted[2][name],
            rtol=TOLERANCE,
            atol=TOLERANCE,
            msg=lambda m, n=name: f"{n}: {m}",
        )
