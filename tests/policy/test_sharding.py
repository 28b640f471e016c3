"""Models on a mesh of one rank: what sharding must not change, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.models import LLAMA, make_model
from zerosearch.policy.adaptation import decoder_layers
from zerosearch.policy.logprobs import token_logprobs
from zerosearch.policy.sharding import (
    Sharding,
    compute_device,
    compute_dtype,
    is_sharded,
    shard_model,
)
from zerosearch.policy.weight_stream import gather, stream_weights


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharding(mesh: DeviceMesh, **fields: Any) -> Sharding:
    return Sharding(mesh=mesh, device=torch.device("cpu"), **fields)


def statistics(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs and gradients of a fixed batch."""
    ids = torch.randint(0, 250, (2, 10), generator=torch.Generator().manual_seed(2))
    attention = torch.ones(2, 10, dtype=torch.bool)
    select = attention.clone()
    select[:, :3] = False
    stats = token_logprobs(model, ids, attention, select, chunk_tokens=4)
    (stats.logprobs.sum() + stats.entropy.sum()).backward()
    gradients = {n: gather(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    return stats.logprobs.detach(), gradients


@pytest.mark.parametrize(
    "settings", [{}, {"reshard_after_forward": False}, {"cpu_offload": True}], ids=str
)
def test_a_sharded_model_computes_the_same(mesh: DeviceMesh, settings: dict[str, Any]) -> None:
    expected, gradients = statistics(make_model(1, scale=3.0))
    model = make_model(1, scale=3.0)
    shard_model(model, sharding(mesh, param_dtype=torch.float32, **settings))
    logprobs, own = statistics(model)
    assert is_sharded(model) and compute_dtype(model) == torch.float32
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-6)
    assert own.keys() == gradients.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-5, atol=1e-5)


def test_invariant_19_weights_are_kept_in_float32_and_computed_in_bfloat16(
    mesh: DeviceMesh,
) -> None:
    seen: list[torch.dtype] = []
    model = make_model(1, scale=3.0)
    expected, _ = statistics(make_model(1, scale=3.0))
    shard_model(model, sharding(mesh))
    for layer in decoder_layers(model):
        layer.mlp.register_forward_hook(  # type: ignore[union-attr]
            lambda module, inputs, output: seen.append(output.dtype)
        )
    logprobs, gradients = statistics(model)
    assert seen == [torch.bfloat16] * 2 and compute_dtype(model) == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    gap = (logprobs - expected).abs().max()
    assert 1e-6 < gap < 0.1


def test_real_tensors_keep_their_values_and_tied_ones_stay_tied(mesh: DeviceMesh) -> None:
    fields: dict[str, Any] = LLAMA | {"tie_word_embeddings": True}
    config = AutoConfig.for_model(**fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    norm = torch.arange(64.0)
    model.model.norm.weight = nn.Parameter(norm.clone())
    shard_model(model, sharding(mesh))
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert torch.equal(gather(model.model.norm.weight.detach()), norm)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_an_offloaded_model_computes_elsewhere(mesh: DeviceMesh) -> None:
    elsewhere = Sharding(mesh=mesh, device=torch.device("meta"), cpu_offload=True)
    model = make_model(1)
    assert compute_device(model) == torch.device("cpu")
    shard_model(model, elsewhere)
    assert compute_device(model) == elsewhere.device
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    # whole weights are where the policy computes, whatever the current device is
    streamed = dict(stream_weights(model, dtype=torch.bfloat16))
    assert {(t.device.type, t.dtype) for t in streamed.values()} == {("meta", torch.bfloat16)}


def test_a_frozen_model_leaves_nothing_gathered(mesh: DeviceMesh) -> None:
    ids = torch.arange(6)[None]
    whole = torch.ones(1, 6, dtype=torch.bool)
    select = whole.clone()
    select[:, 0] = False
    for frozen in (True, False):
        model = make_model(1)
        model.requires_grad_(not frozen)
        shard_model(model, sharding(mesh, param_dtype=torch.float32))
        with torch.no_grad():
            token_logprobs(model, ids, whole, select)
        assert isinstance(model.lm_head.weight, DTensor) == frozen


def test_a_model_without_layers_is_refused(mesh: DeviceMesh) -> None:
    with pytest.raises(ValueError, match="trainer=fsdp: Linear has no decoder layers"):
        shard_model(nn.Linear(2, 2), sharding(mesh))
