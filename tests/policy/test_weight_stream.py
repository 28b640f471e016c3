"""Streamed weights are those of the plain model, whatever adapts or shards the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from tests.helpers.collectives import AllGathers
from tests.helpers.models import make_model
from tests.helpers.ranks import run_ranks
from zerosearch.policy import gathering
from zerosearch.policy.weight_stream import adapter_weights, stream_weights

SMALL_BUCKET = 33_000  # bytes: less than the embedding, more than any other tensor
IDS = torch.arange(3, 12)[None]


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def lora_policy(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    policy = get_peft_model(
        make_model(3, scale=3.0), LoraConfig(r=4, init_lora_weights=False, **settings)
    )
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.5)
    return policy


def test_plain_weights_keep_their_names_and_memory() -> None:
    model = make_model(3)
    state = model.state_dict()
    streamed = dict(stream_weights(model))
    assert streamed.keys() == state.keys()
    for name, tensor in streamed.items():
        assert torch.equal(tensor, state[name]) and not tensor.requires_grad
        assert tensor.data_ptr() == state[name].data_ptr()


def test_a_tied_head_comes_once() -> None:
    names = [name for name, _ in stream_weights(make_model(3, tie_word_embeddings=True))]
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert len(names) == len(set(names))


def test_persistent_buffers_come_too() -> None:
    model = make_model(3)
    model.register_buffer("kept", torch.ones(2, dtype=torch.int64))
    model.register_buffer("made_anew", torch.ones(2), persistent=False)
    streamed = dict(stream_weights(model, dtype=torch.bfloat16))
    assert streamed["kept"].dtype == torch.int64 and "made_anew" not in streamed
    assert streamed["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "v_proj", "lm_head"]},
    ],
)
def test_adapters_are_merged_and_the_policy_untouched(settings: dict) -> None:
    policy = lora_policy(**settings)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    expected = logits(policy)
    plain = make_model(9)
    plain.load_state_dict(dict(stream_weights(policy)))
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(make_model(3, scale=3.0)), expected, atol=1e-2)
    after = policy.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(logits(policy), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_without_merging_come_the_weights_that_are_adapted(settings: dict) -> None:
    base = dict(stream_weights(make_model(3, scale=3.0)))
    streamed = dict(stream_weights(lora_policy(**settings), merge=False))
    assert streamed.keys() == base.keys()
    assert all(torch.equal(tensor, base[name]) for name, tensor in streamed.items())


def test_adapter_weights_are_those_of_pefts_files(tmp_path: Path) -> None:
    policy: Any = lora_policy(target_modules=["q_proj", "down_proj"])
    policy.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    weights = adapter_weights(policy)
    assert weights.keys() == saved.keys() and len(saved) == 8
    assert all(torch.equal(tensor, saved[name]) for name, tensor in weights.items())


def test_the_stream_is_lazy() -> None:
    """What comes later in the model shows what happened to it meanwhile: nothing was collected."""
    model = make_model(3)
    stream = stream_weights(model)
    next(stream)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert dict(stream)["lm_head.weight"].abs().sum() == 0


def policies() -> dict[str, nn.Module]:
    return {
        "plain": make_model(3),
        "tied": make_model(3, tie_word_embeddings=True),
        "lora": lora_policy(target_modules="all-linear"),
        "dora": lora_policy(target_modules="all-linear", use_dora=True),
        "saved": lora_policy(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    }


def shard(model: nn.Module) -> nn.Module:
    causal: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    for layer in causal.model.layers:
        fully_shard(layer)
    fully_shard(causal)
    return model


def stream_as_rank(rank: int, world_size: int, folder: str) -> None:
    """Save what a rank sees, before a forward and after one, which leaves the root gathered."""
    dist.init_process_group("gloo")
    seen = {}
    for kind, model in policies().items():
        shard(model)
        first = dict(stream_weights(model))
        logits(model)
        seen[kind] = (first, dict(stream_weights(model, dtype=torch.float64)))
        logits(model)
        if isinstance(model, PeftModel):
            seen[f"adapter of {kind}"] = (adapter_weights(model),)
        seen[f"{kind} in half"] = dict(stream_weights(model, dtype=torch.bfloat16))
    for room in (gathering.BUCKET_BYTES, SMALL_BUCKET):
        gathering.BUCKET_BYTES = room
        for kind in ("plain", "lora"):
            with AllGathers() as gathers:
                found = dict(stream_weights(shard(policies()[kind]), dtype=torch.bfloat16))
            assert all(torch.equal(found[n], t) for n, t in seen[f"{kind} in half"].items())
            seen[f"{kind}, {room}"] = gathers.sent
    torch.save(seen, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(2, stream_as_rank, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_sharded_weights_arrive_whole_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    expected = {kind: dict(stream_weights(model)) for kind, model in policies().items()}
    for kind, model in policies().items():
        if isinstance(model, PeftModel):
            expected[f"adapter of {kind}"] = adapter_weights(model)
    for seen in ranks:
        for kind, weights in expected.items():
            for stream in seen[kind]:
                assert list(stream) == list(weights), kind
                for name, tensor in stream.items():
                    assert type(tensor) is Tensor
                    assert torch.equal(tensor.float(), weights[name]), (kind, name)


def test_shards_cast_before_they_are_sent_give_the_same_as_after(
    ranks: list[dict[str, Any]],
) -> None:
    for kind, model in policies().items():
        expected = dict(stream_weights(model))
        for seen in ranks:
            stream = seen[f"{kind} in half"]
            assert list(stream) == list(expected), kind
            for name, tensor in stream.items():
                assert torch.equal(tensor, expected[name].to(torch.bfloat16)), (kind, name)


def test_a_rank_sends_half_the_bytes_in_few_collectives(ranks: list[dict[str, Any]]) -> None:
    """Of float32 weights to an engine in bfloat16; what adapters are merged into goes as it is."""
    shapes = [tensor.shape for _, tensor in stream_weights(make_model(3))]
    rows = {shape: -(-shape[0] // 2) for shape in shapes}  # of a rank, the last one filled up
    own = [rows[shape] * shape[1:].numel() * 2 for shape in shapes]
    merged = [m for m in policies()["lora"].modules() if isinstance(m, BaseTunerLayer)]
    for seen in ranks:
        [once] = seen[f"plain, {gathering.BUCKET_BYTES}"]
        assert sum(own) <= once < sum(own) + 16 * len(own)
        several = seen[f"plain, {SMALL_BUCKET}"]
        assert sum(own) <= sum(several) < sum(own) + 16 * len(own)
        assert 2 < len(several) < len(own) / 2
        assert max(several) == max(own), "the largest tensor goes alone, the others share"
        assert all(sent <= SMALL_BUCKET / 2 or sent == max(own) for sent in several)
        # each adapted layer by itself; the embedding, norms between the layers, norms and head
        assert len(seen[f"lora, {gathering.BUCKET_BYTES}"]) == len(merged) + 3
