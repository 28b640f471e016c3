"""Loading shard by shard gives what loading whole gives, bit for bit; ranks agree."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from transformers.utils import is_gguf_available

from tests.helpers.models import LLAMA, make_model, write_gguf
from tests.helpers.ranks import run_ranks
from zerosearch.policy.loading import load_policy, make_reference
from zerosearch.policy.logprobs import token_logprobs
from zerosearch.policy.sharding import Sharding, base_model
from zerosearch.policy.source import PolicySource
from zerosearch.policy.weight_digest import weight_digest
from zerosearch.policy.weight_stream import gather, stream_weights

IDS = torch.arange(3, 12)[None]
LINEAR = {"r": 4, "target_modules": "all-linear"}
GEMMA = {  # its embedding has a scale that no checkpoint holds
    "model_type": "gemma3_text",
    "layer_types": ["sliding_attention", "full_attention"],
    "tie_word_embeddings": True,
}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "tied": {"path": "tied"},
    "weights beside a buffer": {"path": "gemma"},
    "several files": {"path": "split"},
    "torch's format": {"path": "bin"},
    "random": {"random_init": True},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16 base with adapters": {"dtype": "bfloat16", "lora": LINEAR},
    "gaussian adapters": {"lora": {**LINEAR, "init_lora_weights": "gaussian"}},
    "adapters that start from the base": {"lora": {**LINEAR, "use_dora": True}},
    "a head that is trained whole": {
        "dtype": "bfloat16",
        "lora": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    },
}


def make_folders(root: Path) -> Path:
    folders = {"full": {}, "tied": {"tie_word_embeddings": True}, "gemma": GEMMA}
    for name, fields in folders.items():
        model = make_model(5, **fields)
        model.generation_config.eos_token_id = [256, 258]
        model.save_pretrained(root / name)
    make_model(5).save_pretrained(root / "split", max_shard_size="60KB")
    make_model(5).config.save_pretrained(root / "bin")
    torch.save(make_model(5).state_dict(), root / "bin" / "pytorch_model.bin")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("policies"))


@pytest.fixture(scope="module")
def sharding() -> Iterator[Sharding]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield make_sharding(1)
    dist.destroy_process_group()


def make_sharding(world_size: int) -> Sharding:
    mesh = init_device_mesh("cpu", (world_size,))
    return Sharding(mesh=mesh, device=torch.device("cpu"), param_dtype=torch.float32)


def make_source(root: Path, kind: str) -> PolicySource:
    fields = {"path": "full", **KINDS[kind]}
    fields["path"] = str(root / fields["path"])
    if "lora" in fields:
        fields["lora"] = LoraConfig(**fields["lora"])
    return PolicySource(**fields)


def assert_equal(sharded: nn.Module, whole: nn.Module) -> None:
    own = {name: gather(p.detach()) for name, p in sharded.named_parameters()}
    own |= dict(sharded.named_buffers())
    expected = dict(whole.named_parameters()) | dict(whole.named_buffers())
    assert own.keys() == expected.keys()
    for name, tensor in expected.items():
        assert own[name].dtype == tensor.dtype, name
        assert torch.equal(own[name], tensor), name
    trained = [name for name, p in whole.named_parameters() if p.requires_grad]
    assert [name for name, p in sharded.named_parameters() if p.requires_grad] == trained
    assert sharded.training


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_load_equals_the_whole_one_bit_for_bit(
    root: Path, sharding: Sharding, kind: str
) -> None:
    source = make_source(root, kind)
    whole, sharded = source.load_model(), load_policy(source, sharding)
    assert_equal(sharded, whole)
    ends = [base_model(model).generation_config.eos_token_id for model in (sharded, whole)]
    assert ends[0] == ends[1]
    assert weight_digest(sharded) == weight_digest(whole)
    if source.dtype == "float32":
        torch.testing.assert_close(sharded(IDS).logits, whole(IDS).logits, rtol=0, atol=1e-6)


def load_on_rank(rank: int, world_size: int, root: Path) -> None:
    dist.init_process_group("gloo")
    sharding = make_sharding(world_size)
    for kind in ("full", "tied", "random", "gaussian adapters"):
        source = make_source(root, kind)
        policy = load_policy(source, sharding)
        assert_equal(policy, source.load_model())
        reference = make_reference(source, policy, sharding)
        if reference.model is not None:
            assert streamed_equal(reference.model, policy)
            assert reference.origin == weight_digest(source.load_model())
            assert not any(p.requires_grad for p in reference.parameters())


def streamed_equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(stream_weights(one), stream_weights(other), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_hold_slices_of_the_same_model(root: Path, world_size: int) -> None:
    run_ranks(world_size, load_on_rank, root)


def test_the_reference_is_kept_as_it_is_computed(root: Path, sharding: Sharding) -> None:
    source = make_source(root, "full")
    half = Sharding(mesh=sharding.mesh, device=sharding.device)
    policy = load_policy(source, half)
    reference = make_reference(source, policy, half).model
    assert reference is not None
    assert {p.dtype for p in reference.parameters()} == {torch.bfloat16}
    assert reference.model.rotary_emb.inv_freq.dtype == torch.float32  # type: ignore[union-attr]
    assert torch.equal(reference(IDS).logits, policy.eval()(IDS).logits)


@pytest.mark.parametrize("gathered", [False, True], ids=["layers freed", "layers kept"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head", "embed_tokens"]], ids=str)
def test_adapters_are_trained_after_a_pass_without_them(
    root: Path, sharding: Sharding, targets: Any, gathered: bool
) -> None:
    sharding = dataclasses.replace(sharding, reshard_after_forward=not gathered)
    lora = LoraConfig(r=4, target_modules=targets)
    source = PolicySource(path=str(root / "full"), lora=lora)
    policy = load_policy(source, sharding)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    whole, select = torch.ones(2, 1, IDS.shape[1], dtype=torch.bool)
    select[:, 0] = False
    for _ in range(2):
        make_reference(source, policy, sharding).token_logprobs(IDS, whole, select)
        token_logprobs(policy, IDS, whole, select).logprobs.sum().backward()
        assert [name for name, p in policy.named_parameters() if p.requires_grad] == trained
        assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)


@pytest.mark.skipif(not is_gguf_available(), reason="needs the gguf package")
def test_gguf_is_handed_out_by_rank_0(tmp_path: Path, sharding: Sharding) -> None:
    write_gguf(make_model(7, max_position_embeddings=64), tmp_path / "tiny.gguf")
    source = PolicySource(path=str(tmp_path), gguf_file="tiny.gguf")
    assert_equal(load_policy(source, sharding), source.load_model())


def edited(root: Path, folder: Path, edit: Any) -> PolicySource:
    """The full policy with other tensors in its file."""
    make_model(5).config.save_pretrained(folder)
    tensors: dict[str, Tensor] = load_file(root / "full" / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    return PolicySource(path=str(folder))


def test_files_that_are_not_of_the_model_are_refused(
    root: Path, tmp_path: Path, sharding: Sharding
) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["model.other"] = tensors.pop("model.norm.weight")

    with pytest.raises(
        ValueError, match=r"1 tensors are missing \(model.norm.weight\).*\(model.other\)"
    ):
        load_policy(edited(root, tmp_path, rename), sharding)

    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:7].clone()

    with pytest.raises(ValueError, match=r"model.norm.weight has shape \[7\].*has \[64\]"):
        load_policy(edited(root, tmp_path, cut), sharding)


def test_what_whole_loading_refuses_is_refused_alike(
    root: Path, tmp_path: Path, sharding: Sharding
) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        load_policy(PolicySource(path=str(tmp_path)), sharding)
    wrong = LLAMA | {"num_hidden_layers": 3}
    for folder in ("full", "bin"):
        source = PolicySource(path=str(root / folder), architecture=wrong)
        with pytest.raises(ValueError, match=r"architecture.num_hidden_layers=3.*have 2"):
            load_policy(source, sharding)


def test_the_split_policy_really_is_split(root: Path) -> None:
    index = json.loads((root / "split" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
