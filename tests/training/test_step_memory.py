"""What memory a policy step holds, and what it reports of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby

import pytest
import torch
from torch import nn

from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import (
    CopiedPolicy,
    Records,
    fit,
    make_data,
    make_questions,
    make_training,
)
from tests.helpers.words import make_word_model, make_word_tokenizer
from tests.training.test_ppo import make_ppo
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.reference import ReferencePolicy
from zerosearch.training import base_module, learner, metrics, pipeline
from zerosearch.training import module as training
from zerosearch.training.metrics import peak_memory_gib, reset_peak_memory

GIB = 2**30


class CudaMemory:
    """Stands in for what `torch.cuda` says of the allocator of one device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.now = self.peak = 0

    def use(self, gib: float) -> None:
        """Allocate and free."""
        self.peak = max(self.peak, self.now + int(gib * GIB))

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        assert device == self.device
        self.peak = self.now

    def max_memory_allocated(self, device: torch.device) -> int:
        assert device == self.device
        return self.peak


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaMemory:
    memory = CudaMemory("cuda:1")
    for name in ("reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, getattr(memory, name))
    return memory


def test_a_peak_is_of_the_time_since_the_reset_and_of_any_rank(
    cuda: CudaMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.use(5.0)
    reset_peak_memory(cuda.device)
    cuda.use(2.0)
    assert peak_memory_gib(cuda.device) == 2.0
    monkeypatch.setattr(metrics, "gather_objects", lambda own: [own, 3.5, 0.5])
    assert peak_memory_gib(cuda.device) == 3.5


def test_on_a_cpu_it_is_what_the_process_took_on_any_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    own = peak_memory_gib(cpu)
    assert 0.05 < own < 100.0
    monkeypatch.setattr(metrics, "gather_objects", lambda own: [1.0, own + 1000.0])
    assert peak_memory_gib(cpu) >= own + 1000.0


def test_on_a_cpu_every_step_reports_its_own_peak() -> None:
    """The kernel's high-water mark of a process never falls by itself."""

    class Sampler(TransformersGenerator):
        async def sync_weights(self, policy: nn.Module) -> None:
            torch.ones(next(sizes) * 2**18)  # MiB
            await super().sync_weights(policy)

    sizes: Iterator[int] = iter((600, 1))
    records = fit(make_training(generator=Sampler(), policy_steps=2), make_questions(2))
    first, second = (record.metrics["memory/peak_gib"] for record in records)
    assert second < first - 0.4


def test_every_step_reports_its_own_peak(cuda: CudaMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling takes 3, then 1 GiB more than training's 2."""

    class Sampler(TransformersGenerator):
        async def sync_weights(self, policy: nn.Module) -> None:
            cuda.use(next(sizes))
            await super().sync_weights(policy)

    sizes: Iterator[float] = iter((5.0, 3.0, 1.0))
    monkeypatch.setattr(training, "reset_peak_memory", lambda _: reset_peak_memory(cuda.device))
    monkeypatch.setattr(training, "peak_memory_gib", lambda _: peak_memory_gib(cuda.device))
    records = fit(make_training(generator=Sampler(), policy_steps=3), make_questions(2))
    assert [record.metrics["memory/peak_gib"] for record in records] == [5.0, 3.0, 1.0]


def test_the_heap_is_given_back_between_the_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one phase has freed is not there beside what the next one takes."""
    events: list[str] = []

    class Sampler(TransformersGenerator):
        async def generate(self, prompt_ids, request):
            events.append("sample")
            return await super().generate(prompt_ids, request)

    class Descent(torch.optim.SGD):
        def step(self, *args, **named):
            events.append("update")
            return super().step(*args, **named)

    def describe(reference: ReferencePolicy, *args, **named):
        events.append("log-probs")
        return token_logprobs(reference, *args, **named)

    token_logprobs = ReferencePolicy.token_logprobs
    monkeypatch.setattr(ReferencePolicy, "token_logprobs", describe)
    for module in (pipeline, learner, base_module):
        monkeypatch.setattr(module, "give_back_heap", lambda: events.append("give back"))
    policy = CopiedPolicy(make_word_model(), make_word_tokenizer())
    parts = {"generator": Sampler(), "optimizer": partial(Descent, lr=0.1), "policy": policy}
    module = make_training(**parts, algorithm=Algorithm(group_size=4, kl_coefficient=0.1))
    make_trainer(1, callbacks=[], val_every=1).fit(
        module, make_data(make_questions(2), make_questions(1))
    )
    step = ["sample", "give back", "log-probs", "give back", "update", "give back"]
    assert [name for name, _ in groupby(events)] == [*step, "sample", "give back"]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_no_gradient_is_kept_while_the_policy_is_sampled(algorithm: str, lag: int) -> None:
    held: list[int] = []

    class Sampler(TransformersGenerator):
        async def sync_weights(self, policy: nn.Module) -> None:
            held.append(gradients())
            await super().sync_weights(policy)

        async def generate(self, prompt_ids, request):
            if lag == 0:  # else sampling goes on beside the update
                held.append(gradients())
            return await super().generate(prompt_ids, request)

    def gradients() -> int:
        return sum(parameter.grad is not None for parameter in module.parameters())

    module = make_training(
        policy=CopiedPolicy(make_word_model(), make_word_tokenizer()),
        algorithm=make_ppo() if algorithm == "ppo" else Algorithm(group_size=4),
        generator=Sampler(copy_weights=True),
        lag=lag,
        policy_steps=3,
    )
    watch = Records()
    data = make_data(make_questions(2), make_questions(1))
    # Lightning frees them before a validation, but not before the next step
    make_trainer(3, callbacks=[watch], val_every=3).fit(module, data)
    assert len(watch.steps) == 3 and len(held) >= 4 and not any(held)
