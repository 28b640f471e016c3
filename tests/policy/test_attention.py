"""Which attention is trained with, by device, family and what lies on the machine."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import torch.distributed as dist
import transformers.modeling_utils
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tests.helpers.flex import flex_on_cpu
from tests.helpers.models import make_model
from tests.policy.test_flex_attention import make_batch
from zerosearch.policy import attention, flex_attention
from zerosearch.policy.attention import use_training_attention
from zerosearch.policy.flex_attention import FLEX_ATTENTION
from zerosearch.policy.logprobs import packs_rightly, packs_sequences, token_logprobs
from zerosearch.policy.sharding import Sharding, record_autocast, shard_model
from zerosearch.policy.source import PolicySource

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GPT2 = {
    "model_type": "gpt2",
    "intermediate_size": None,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
LFM2 = {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_ff_dim": 64}


@pytest.fixture(scope="module", autouse=True)
def with_gradients() -> Iterator[None]:
    with flex_on_cpu():
        yield


def chosen(
    name: str, model: nn.Module, device: torch.device, precision: str = "bf16-mixed"
) -> tuple[Any, bool]:
    record_autocast(model, precision)
    use_training_attention(name, (model, None), device)
    return model.config._attn_implementation, packs_sequences(model)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", CPU, ("sdpa", False)),
        ("auto", GPU, (FLEX_ATTENTION, True)),
        ("flex_attention", GPU, (FLEX_ATTENTION, True)),
        ("sdpa", GPU, ("sdpa", False)),
    ],
)
def test_sequences_are_packed_on_a_gpu(name: str, device: torch.device, expected: Any) -> None:
    assert chosen(name, make_model(), device) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (GPT2, "GPT2LMHeadModel does not support"),
        ({"model_type": "gemma2"}, "caps its scores"),
        ({"head_dim": 8}, "no heads of 8 numbers"),
        (LFM2, "lfm2 that share a row would see each other"),
    ],
)
def test_a_family_that_cannot_pack_is_padded_and_the_log_says_why(
    fields: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert chosen("auto", make_model(3, scale=4.0, **fields), GPU) == ("sdpa", False)
    assert reason in caplog.text
    with pytest.raises(ValueError, match=r"model.attn_implementation=flex_attention: .*use auto"):
        chosen("flex_attention", make_model(3, scale=4.0, **fields), GPU)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (lambda *_, **__: 1 / 0, "does not run here (ZeroDivisionError: division by zero)"),
        (lambda q, k, v, **_: q * k.mean() * v.mean(), "differs from sdpa by"),
    ],
)
def test_without_working_kernels_sequences_are_padded(
    kernel: Any, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No Triton, no C compiler, too little shared memory; or numbers of something else."""
    monkeypatch.setattr(flex_attention, "compiled_flex", lambda: kernel)
    with caplog.at_level(logging.WARNING):
        assert chosen("auto", make_model(), GPU) == ("sdpa", False)
    assert reason in caplog.text
    with pytest.raises(ValueError, match=re.escape(reason)):
        chosen("flex_attention", make_model(), GPU)


def test_a_layer_with_a_state_along_the_row_is_found() -> None:
    assert packs_rightly(make_model(3, scale=4.0))
    assert not packs_rightly(make_model(3, scale=4.0, **LFM2))


@pytest.mark.parametrize("name", ["flex_attention", "flash_attention_2"])
def test_what_has_no_gradient_on_a_cpu_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"model.attn_implementation={name}: .*CPU"):
        chosen(name, make_model(), CPU)


def test_flash_attention_in_float32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flash_attention_2: .*16 bits.*bf16-mixed"):
        chosen("flash_attention_2", make_model(), GPU, precision="32-true")


def test_an_unknown_attention_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"model.attn_implementation=flesh is unknown: use one of"):
        PolicySource(path="nowhere", attn_implementation="flesh").check()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The kernels that lie on this machine: a stand-in for the package and a Hopper GPU."""
    found: set[str] = set()

    def load(name: str, **_: Any) -> None:
        assert huggingface_hub.constants.HF_HUB_OFFLINE, "a kernel would be fetched"
        if name not in found:
            raise ValueError(f"{name} is not here")

    monkeypatch.setattr(attention, "is_kernels_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(transformers.modeling_utils, "lazy_import_flash_attention", load)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return found


@pytest.mark.parametrize("version", ["3", "2"])
def test_flash_attention_is_taken_where_its_kernel_lies_on_the_machine(
    kernels: set[str], version: str
) -> None:
    kernels.add(name := f"kernels-community/flash-attn{version}")
    assert chosen("auto", make_model(), GPU) == (name, True)
    assert chosen("auto", make_model(), GPU, precision="32-true") == (FLEX_ATTENTION, True)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_kernel_is_never_fetched_by_default(kernels: set[str]) -> None:
    assert chosen("auto", make_model(), GPU) == (FLEX_ATTENTION, True)


@pytest.fixture
def sharding() -> Iterator[Sharding]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Sharding(mesh=init_device_mesh("cpu", (1,)), device=CPU, param_dtype=torch.float32)
    dist.destroy_process_group()


def test_a_sharded_policy_with_checkpointing_packs(sharding: Sharding) -> None:
    whole, policy = make_model(3, scale=4.0), make_model(3, scale=4.0)
    batch = make_batch(12, 9, 4)
    expected = token_logprobs(whole, *batch).logprobs
    expected.sum().backward()
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    shard_model(policy, sharding)
    assert chosen("auto", policy, GPU) == (FLEX_ATTENTION, True)
    found = token_logprobs(policy, *batch, packed=True).logprobs
    found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for own, other in zip(policy.parameters(), whole.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        scale = other.grad.abs().max().clamp(min=1.0)
        gap = (own.grad.full_tensor() - other.grad) / scale  # type: ignore[attr-defined]
        assert gap.abs().max() < 1e-5
