"""Values against transformers' own hidden states, in every layout and for every kind of source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig
from torch import Tensor, nn
from transformers.utils import is_gguf_available

from tests.helpers.models import make_model, write_gguf
from tests.helpers.ranks import run_ranks
from tests.policy.test_loading import (
    KINDS,
    assert_equal,
    edited,
    make_folders,
    make_sharding,
    make_source,
)
from tests.policy.test_logprobs import FAMILIES
from zerosearch.policy.critic import load_critic, put_value_head, token_values
from zerosearch.policy.sharding import Sharding, base_model, named_tensors, reshard
from zerosearch.policy.source import PolicySource
from zerosearch.policy.weight_stream import gather

LENGTHS = (12, 9, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("policies"))


@pytest.fixture(scope="module")
def sharding() -> Iterator[Sharding]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield make_sharding(1)
    dist.destroy_process_group()


def set_head(critic: nn.Module) -> nn.Module:
    """Give the value head weights that are not zero."""
    head = base_model(critic).get_output_embeddings()
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.fill_(0.5)
        head.bias.fill_(-0.25)
    return critic


def make_critic(**fields: Any) -> nn.Module:
    model = make_model(3, scale=3.0, **fields)
    put_value_head(model)
    return set_head(model)


def make_batch(padding: str) -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention, selection, [3, 12]; rows of `LENGTHS` tokens, one of them not selected."""
    ids = torch.full((3, 12), 7)
    attention, select = torch.zeros(2, 3, 12, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        start = 12 - length if padding == "left" else 0
        tokens = torch.arange(length).add(31 * row).remainder(250)
        ids[row, start : start + length] = tokens
        attention[row, start : start + length] = True
        select[row, start + 1 : start + length] = True
    select[0, 5] = False
    return ids, attention, select


def gradients(critic: nn.Module, values: Tensor) -> dict[str, Tensor]:
    critic.zero_grad()
    (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
    return {n: gather(p.grad) for n, p in critic.named_parameters() if p.grad is not None}


# -- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_a_value_is_the_head_on_the_state_before_the_token(family: str) -> None:
    critic = make_critic(**FAMILIES[family])
    ids, attention, select = make_batch("right")
    hidden = base_model(critic).get_decoder()(ids, attention_mask=attention.long())[0]
    weight, bias = (critic.get_parameter(f"lm_head.{name}") for name in ("weight", "bias"))
    by_hand = (hidden * weight[0]).sum(-1) + bias  # [B, T], of the state after t
    values = token_values(critic, ids, attention, select)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values[:, 1:][select[:, 1:]], by_hand[:, :-1][select[:, 1:]])
    assert not values[~select].any() and values[select].all()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_every_layout_gives_the_values_of_single_rows(padding: str, packed: bool) -> None:
    critic = make_critic()
    ids, attention, select = make_batch(padding)
    values = token_values(critic, ids, attention, select, packed=packed)
    for row in range(len(LENGTHS)):
        own = ids[row][attention[row]][None]
        alone = token_values(critic, own, torch.ones_like(own), select[row][attention[row]][None])
        torch.testing.assert_close(values[row][attention[row]], alone[0], rtol=0, atol=1e-5)


def test_values_start_at_zero_and_gradients_reach_the_embeddings_later() -> None:
    critic = make_model(3)
    put_value_head(critic)
    batch = make_batch("right")
    values = token_values(critic, *batch)
    assert not values.any()
    first = gradients(critic, values)
    assert [name for name, gradient in first.items() if gradient.any()] == [
        "lm_head.weight",
        "lm_head.bias",
    ]
    set_head(critic)
    later = gradients(critic, token_values(critic, *batch))
    assert later["model.embed_tokens.weight"].any()
    assert all(gradient.any() for gradient in later.values())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_selected_gives_zero_gradients_to_all(packed: bool, checkpointing: bool) -> None:
    critic = make_critic()
    if checkpointing:
        base_model(critic).gradient_checkpointing_enable({"use_reentrant": False})
    ids, attention, select = make_batch("left")
    values = token_values(critic, ids, attention, torch.zeros_like(select), packed=packed)
    assert not values.any()
    found = gradients(critic, values)
    assert found.keys() == dict(critic.named_parameters()).keys()
    assert not any(gradient.any() for gradient in found.values())


def test_a_token_that_no_state_predicts_is_refused() -> None:
    ids, attention, select = make_batch("left")
    select[1, 3] = True  # the first real token of its row
    with pytest.raises(ValueError, match="select_mask"):
        token_values(make_critic(), ids, attention, select)


def test_values_are_not_rounded_under_autocast_or_in_a_bfloat16_model() -> None:
    critic = make_critic()
    batch = make_batch("right")
    expected = token_values(critic, *batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = token_values(critic, *batch)
    half = token_values(critic.bfloat16(), *batch)
    for values in (mixed, half):
        assert values.dtype == torch.float32
        assert not torch.equal(values, values.bfloat16().float())
        torch.testing.assert_close(values, expected, rtol=0.05, atol=0.3)


# -- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_sharded_equals_whole(
    root: Path, sharding: Sharding, kind: str
) -> None:
    source = make_source(root, kind)
    whole, sharded = load_critic(source, None), load_critic(source, sharding)
    assert_equal(sharded, whole)
    base = base_model(whole)
    assert not base.config.tie_word_embeddings
    head = base.get_output_embeddings()
    assert isinstance(head, nn.Linear) and head.weight.shape == (1, 64)
    assert head.bias is not None and head.weight.dtype == torch.float32
    batch = make_batch("right")
    values = [token_values(set_head(critic), *batch) for critic in (whole, sharded)]
    if source.dtype == "float32":
        torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-5)
    reshard(sharded)
    policy = dict(source.load_model().named_parameters())
    for name, tensor in named_tensors(whole):
        if name in policy and "lm_head" not in name:
            assert torch.equal(tensor, policy[name]), name


@pytest.mark.skipif(not is_gguf_available(), reason="needs the gguf package")
def test_a_critic_from_gguf(tmp_path: Path, sharding: Sharding) -> None:
    write_gguf(make_model(7, max_position_embeddings=64), tmp_path / "tiny.gguf")
    source = PolicySource(path=str(tmp_path), gguf_file="tiny.gguf")
    assert_equal(load_critic(source, sharding), load_critic(source, None))


@pytest.mark.parametrize("tensor", ["model.norm.weight", "lm_head.weight"])
def test_only_the_head_may_be_missing_in_the_files(
    root: Path, tmp_path: Path, sharding: Sharding, tensor: str
) -> None:
    source = edited(root, tmp_path, lambda tensors: tensors.pop(tensor))
    if tensor == "lm_head.weight":
        load_critic(source, sharding)
    else:
        with pytest.raises(ValueError, match=r"1 tensors are missing \(model.norm.weight\)"):
            load_critic(source, sharding)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]], ids=str)
def test_with_lora_adapters_and_head_are_trained(
    root: Path, sharding: Sharding, targets: Any
) -> None:
    lora = LoraConfig(r=4, target_modules=targets)
    source = PolicySource(path=str(root / "full"), lora=lora, gradient_checkpointing=True)
    for critic in (load_critic(source, None), load_critic(source, sharding)):
        trained = {name for name, p in critic.named_parameters() if p.requires_grad}
        expected = {n for n, _ in critic.named_parameters() if ".lora_" in n or ".lm_head." in n}
        assert trained == expected and {n for n in trained if "lm_head" in n} == {
            "base_model.model.lm_head.weight",
            "base_model.model.lm_head.bias",
        }
        found = gradients(set_head(critic), token_values(critic, *make_batch("right")))
        assert found.keys() == trained
        assert all(gradient.any() for name, gradient in found.items() if "lora_B" in name)


# -- two ranks ------------------------------------------------------------------------------------


def compare_on_rank(rank: int, world_size: int, root: Path) -> None:
    """Rank 1 selects nothing: gradients, a mean over ranks, are half of those of one process."""
    dist.init_process_group("gloo")
    sharding = make_sharding(world_size)
    ids, attention, select = make_batch("left")
    mine = select if rank == 0 else torch.zeros_like(select)
    for kind in ("full", "tied", "torch's format", "gaussian adapters"):
        source = make_source(root, kind)
        whole, sharded = load_critic(source, None), load_critic(source, sharding)
        assert_equal(sharded, whole)
        expected = token_values(set_head(whole), ids, attention, select)
        values = token_values(set_head(sharded), ids, attention, mine)
        if rank == 0:
            torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
        wanted, found = gradients(whole, expected), gradients(sharded, values)
        assert wanted.keys() == found.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(2 * gradient, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.timeout(900)  # two processes that import everything, on a busy machine too
def test_two_ranks_give_the_values_and_gradients_of_one_process(root: Path) -> None:
    run_ranks(2, compare_on_rank, root)
