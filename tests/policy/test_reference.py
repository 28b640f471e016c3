"""The reference stays where training began: a copy, or with LoRA the base at no cost."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.helpers.models import make_model
from zerosearch.policy.logprobs import token_logprobs
from zerosearch.policy.reference import ReferencePolicy, expect_reference


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(0, 250, (2, 8), generator=torch.Generator().manual_seed(2))
    attention = torch.ones(2, 8, dtype=torch.bool)
    select = attention.clone()
    select[:, :3] = False
    return ids, attention, select


def move(model: nn.Module) -> None:
    """One large step of every trainable parameter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.ones_like(parameter), alpha=0.05)


class Owner(nn.Module):
    """Holds policy and reference as the training module does."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        self.reference = ReferencePolicy.from_policy(policy)


def lora_policy() -> nn.Module:
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"])
    return get_peft_model(make_model(3, scale=3.0), lora)


def test_full_reference_stays_while_the_policy_moves() -> None:
    policy, batch = make_model(3, scale=3.0), make_batch()
    start = token_logprobs(policy, *batch).logprobs.detach()
    reference = ReferencePolicy.from_policy(policy)
    move(policy)
    assert torch.equal(reference.token_logprobs(*batch).logprobs, start)
    assert not torch.allclose(token_logprobs(policy, *batch).logprobs, start, atol=1e-2)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_lora_reference_is_the_base_model_and_restores_the_adapters() -> None:
    policy, batch = lora_policy(), make_batch()
    start = token_logprobs(policy, *batch).logprobs.detach()
    reference = ReferencePolicy.from_policy(policy)
    move(policy)
    moved = token_logprobs(policy, *batch).logprobs
    assert not torch.allclose(moved, start, atol=1e-2)
    torch.testing.assert_close(reference.token_logprobs(*batch).logprobs, start)
    assert torch.equal(token_logprobs(policy, *batch).logprobs, moved)
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in n or "modules_to_save" in n for n in trainable)


def test_no_gradient_flows_into_the_reference() -> None:
    for policy in (make_model(3), lora_policy()):
        stats = ReferencePolicy.from_policy(policy).token_logprobs(*make_batch())
        assert not stats.logprobs.requires_grad


def test_temperature_is_applied() -> None:
    policy, batch = make_model(3, scale=3.0), make_batch()
    reference = ReferencePolicy.from_policy(policy)
    expected = token_logprobs(policy, *batch, temperature=0.7).logprobs
    torch.testing.assert_close(
        reference.token_logprobs(*batch, temperature=0.7, chunk_tokens=2).logprobs, expected
    )


def restored(owner: Owner, state: dict[str, Tensor]) -> Owner:
    expect_reference(owner, state)
    owner.load_state_dict(state)
    return owner


def test_a_reference_that_the_files_give_is_not_saved() -> None:
    owner = Owner(make_model(3))
    move(owner.policy)
    state = owner.state_dict()
    assert state and not any(name.startswith("reference") for name in state)
    resumed = restored(Owner(make_model(3)), state)
    assert all(torch.equal(value, state[name]) for name, value in resumed.state_dict().items())
    batch, start = make_batch(), Owner(make_model(3)).reference
    for each in (owner, resumed):
        found = each.reference.token_logprobs(*batch).logprobs
        assert torch.equal(found, start.token_logprobs(*batch).logprobs)
    resumed.reference.check_origin(owner.reference.left_out, "x")


def test_a_reference_that_has_moved_is_saved_and_stays_so() -> None:
    owner = Owner(make_model(3))
    move(owner.policy)
    owner.reference.reset(owner.policy)
    move(owner.policy)
    resumed = restored(Owner(make_model(4)), owner.state_dict())
    assert resumed.state_dict().keys() == owner.state_dict().keys()
    assert any(name.startswith("reference") for name in resumed.state_dict())
    batch = make_batch()
    expected = owner.reference.token_logprobs(*batch).logprobs
    assert torch.equal(resumed.reference.token_logprobs(*batch).logprobs, expected)
    assert owner.reference.left_out is None
    resumed.reference.check_origin(None, "x")


def test_adapters_have_no_reference_to_save() -> None:
    owner = Owner(lora_policy())
    state = owner.state_dict()
    assert state and not any(name.startswith("reference") for name in state)
    restored(Owner(lora_policy()), state).reference.check_origin(owner.reference.left_out, "x")


def test_other_files_than_at_the_start_are_refused() -> None:
    saved = Owner(make_model(3)).reference.left_out
    reference = Owner(make_model(4)).reference
    with pytest.raises(ValueError, match=rf"{saved}, but model.path=there now gives .*: set model"):
        reference.check_origin(saved, "there")
    with pytest.raises(ValueError, match=r"that of the checkpoint had none"):
        reference.check_origin(None, "there")


def test_reference_ignores_the_mode_of_its_owner() -> None:
    owner = Owner(make_model(3)).train()
    assert owner.policy.training
    assert not any(module.training for module in owner.reference.modules())
    adapted = Owner(lora_policy()).train()
    adapted.reference.token_logprobs(*make_batch())
    assert adapted.policy.training
