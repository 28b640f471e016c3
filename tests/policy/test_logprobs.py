"""Chunked log-probs against the full forward pass of each family, gradients included."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.helpers.models import make_model
from zerosearch.policy import hidden_states
from zerosearch.policy.flex_attention import FLEX_ATTENTION
from zerosearch.policy.logprobs import packs_sequences, token_logprobs, verify_logprobs

FAMILIES = {
    "llama": {},
    "llama_tied": {"tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2"},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "gemma2": {"model_type": "gemma2", "final_logit_softcapping": 0.7},
    "gemma3_text": {"model_type": "gemma3_text", "sliding_window": 5},
    "cohere": {"model_type": "cohere", "logit_scale": 0.3},
    "gpt2": {  # the one with absolute positions
        "model_type": "gpt2",
        "intermediate_size": None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "granite": {"model_type": "granite", "logits_scaling": 0.4},
}


def make_batch(padding: str) -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention and selection, [3, 12]; rows of 12, 9 and 4 tokens padded with garbage."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 250, (3, 12), generator=generator)
    attention = torch.zeros(3, 12, dtype=torch.bool)
    select = torch.zeros(3, 12, dtype=torch.bool)
    for row, length in enumerate((12, 9, 4)):
        start = 12 - length if padding == "left" else 0
        attention[row, start : start + length] = True
        select[row, start + 2 : start + length] = True
    select[0, 5] = False
    return ids, attention, select


def full_forward(
    model: nn.Module, ids: Tensor, attention: Tensor, select: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropy [B, T] by the plain definition, with all logits in memory."""
    positions = (attention.long().cumsum(-1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids, attention_mask=attention.long(), position_ids=positions, use_cache=False
    ).logits
    log_p = (logits.float() / temperature).log_softmax(-1)[:, :-1]
    logprobs = log_p.gather(-1, ids[:, 1:, None])[..., 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    mask = select[:, 1:]
    pad = (1, 0)
    return (
        nn.functional.pad(torch.where(mask, logprobs, 0.0), pad),
        nn.functional.pad(torch.where(mask, entropy, 0.0), pad),
    )


def gradients(model: nn.Module, logprobs: Tensor, entropy: Tensor) -> dict[str, Tensor]:
    weights = torch.linspace(-1, 1, logprobs.numel()).view_as(logprobs)
    model.zero_grad(set_to_none=True)
    ((logprobs * weights).sum() + 0.1 * entropy.sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2"])
def test_a_shared_prompt_is_read_once_with_the_gradient_of_all(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden_states, "LEAST_SHARED", 4)
    model = make_model(3, scale=4.0, **FAMILIES[family])
    ids, attention, select = make_batch("right")
    ids[:, :4] = ids[0, :4]
    attention[2, 4:6] = True  # rows of 12, 9 and 6 tokens
    select[:, :5], select[2, 5] = False, True
    expected = full_forward(model, ids, attention, select)
    wanted = gradients(model, *expected)
    read: list[int] = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, named: read.append(named["input_ids"].numel()), with_kwargs=True
    )
    found = token_logprobs(model, ids, attention, select)
    got = gradients(model, found.logprobs, found.entropy)
    hook.remove()
    assert read == [4, 3 * 8], "the shared tokens once, then what is each row's own"
    torch.testing.assert_close((found.logprobs, found.entropy), expected)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ("nothing", 6),
        ("another token", 3),
        ("padding on the left", 0),
        ("a selected token", 4),
        ("one row", 0),
        ("few", 0),
    ],
)
def test_what_all_rows_begin_with(change: str, shared: int, monkeypatch) -> None:
    monkeypatch.setattr(hidden_states, "LEAST_SHARED", 7 if change == "few" else 3)
    ids = torch.arange(10).repeat(3, 1)
    ids[1, 6:] += 1
    attended, selected = torch.ones(3, 10, dtype=torch.bool), torch.zeros(3, 10, dtype=torch.bool)
    selected[:, 8] = True
    if change == "another token":
        ids[2, 3] = 7
    if change == "padding on the left":
        attended[0, 0] = False
    if change == "a selected token":
        selected[2, 5] = True
    rows = slice(1) if change == "one row" else slice(3)
    assert hidden_states.shared_prefix(ids[rows], attended[rows], selected[rows]) == shared


def test_layers_with_a_window_or_computed_again_read_every_row() -> None:
    assert hidden_states.shares_prefixes(make_model(3))
    assert not hidden_states.shares_prefixes(make_model(3, **FAMILIES["mistral"]))
    assert not hidden_states.shares_prefixes(make_model(3, **FAMILIES["gemma3_text"]))
    model = make_model(3)
    model.gradient_checkpointing_enable()
    assert not hidden_states.shares_prefixes(model)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_full_forward_with_gradients(family: str, padding: str, packed: bool) -> None:
    model = make_model(3, scale=4.0, **FAMILIES[family])
    ids, attention, select = make_batch(padding)
    expected = full_forward(model, ids, attention, select)
    expected_gradients = gradients(model, *expected)
    stats = token_logprobs(model, ids, attention, select, chunk_tokens=4, packed=packed)
    torch.testing.assert_close(stats.logprobs, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.entropy, expected[1], rtol=1e-5, atol=1e-5)
    actual_gradients = gradients(model, stats.logprobs, stats.entropy)
    assert actual_gradients.keys() == expected_gradients.keys()
    for name, gradient in actual_gradients.items():
        scale = expected_gradients[name].abs().max().clamp(min=1.0)
        torch.testing.assert_close(
            gradient / scale, expected_gradients[name] / scale, rtol=0, atol=1e-5, msg=name
        )


def test_packed_rows_do_not_see_each_other() -> None:
    model = make_model(3, scale=4.0)
    ids, attended, select = make_batch("right")
    expected = token_logprobs(model, ids, attended, select)
    model.set_attn_implementation("eager")
    stats = token_logprobs(model, ids, attended, select, packed=True)
    torch.testing.assert_close(stats.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.entropy, expected.entropy, rtol=1e-5, atol=1e-5)


def test_a_packed_row_has_no_padding() -> None:
    model = make_model(3)
    ids, attended, select = make_batch("right")
    shapes: list[tuple[int, ...]] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    token_logprobs(model, ids, attended, select, packed=True)
    token_logprobs(model, ids, attended, select)
    assert shapes == [(1, 12 + 9 + 4), (3, 12)]


def test_attention_that_skips_what_is_between_sequences_packs_them() -> None:
    model = make_model(3)
    packs = {}
    for name in ("eager", "sdpa", FLEX_ATTENTION, "flash_attention_2", "flash_attention_3"):
        model.config._attn_implementation = name  # without the kernels, which are not here
        packs[name] = packs_sequences(model)
    assert list(packs.values()) == [False, False, True, True, True]


def test_padding_side_and_content_do_not_matter() -> None:
    model = make_model(3, scale=4.0)
    left, right = (token_logprobs(model, *make_batch_of_one(side)) for side in ("left", "right"))
    torch.testing.assert_close(left.logprobs[0, 7:], right.logprobs[0, :5], rtol=0, atol=1e-5)
    ids, attention, select = make_batch_of_one("left")
    other = token_logprobs(model, torch.where(attention, ids, 99), attention, select)
    torch.testing.assert_close(other.logprobs, left.logprobs, rtol=0, atol=1e-6)


def make_batch_of_one(side: str) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.tensor([10, 20, 30, 40, 50])
    ids = torch.full((1, 12), 7)
    attention = torch.zeros(1, 12, dtype=torch.bool)
    start = 7 if side == "left" else 0
    ids[0, start : start + 5] = tokens
    attention[0, start : start + 5] = True
    select = attention.clone()
    select[0, start] = False
    return ids, attention, select


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head", "embed_tokens"]])
def test_lora_equals_full_forward(targets: str | list[str]) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(make_model(3, scale=3.0), lora)
    ids, attention, select = make_batch("right")
    expected = full_forward(model, ids, attention, select)
    expected_gradients = gradients(model, *expected)
    stats = token_logprobs(model, ids, attention, select, chunk_tokens=7)
    torch.testing.assert_close(stats.logprobs, expected[0], rtol=1e-5, atol=1e-5)
    actual = gradients(model, stats.logprobs, stats.entropy)
    assert actual.keys() == expected_gradients.keys() and all("lora" in name for name in actual)
    for name, gradient in actual.items():
        scale = expected_gradients[name].abs().max().clamp(min=1.0)
        torch.testing.assert_close(
            gradient / scale, expected_gradients[name] / scale, rtol=0, atol=1e-5, msg=name
        )


def test_bf16_autocast_equals_full_forward_and_is_float32() -> None:
    model = make_model(3, scale=3.0)
    batch = make_batch("right")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = full_forward(model, *batch)
        stats = token_logprobs(model, *batch, chunk_tokens=4)
        actual = gradients(model, stats.logprobs, stats.entropy)
    assert stats.logprobs.dtype == stats.entropy.dtype == torch.float32
    torch.testing.assert_close(stats.logprobs, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.entropy, expected[1], rtol=1e-5, atol=1e-5)
    assert all(torch.isfinite(gradient).all() for gradient in actual.values())
    assert len(actual) == len(list(model.parameters()))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = make_model(3, scale=3.0)
    batch = make_batch("right")
    plain = token_logprobs(model, *batch)
    expected = gradients(model, plain.logprobs, plain.entropy)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    stats = token_logprobs(model, *batch)
    actual = gradients(model, stats.logprobs, stats.entropy)
    assert len(calls) == 2  # once forward, once recomputed
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_hand_computed_values() -> None:
    """A head of zeros but for the bias-free row of token 5: p(5) = e^a / (e^a + 258)."""
    model = make_model(0)
    hidden = torch.zeros(64)
    hidden[0] = 1.0

    def fixed_hidden(_module: nn.Module, _args: tuple, output: object) -> object:
        output.last_hidden_state = hidden.expand_as(output.last_hidden_state)  # type: ignore[attr-defined]
        return output

    model.get_decoder().register_forward_hook(fixed_hidden)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[5, 0] = 2.0
    ids = torch.tensor([[1, 5, 6]])
    ones = torch.ones_like(ids, dtype=torch.bool)
    select = torch.tensor([[False, True, True]])
    stats = token_logprobs(model, ids, ones, select)
    z = torch.log(torch.tensor(258 + torch.e**2))
    entropy = z - 2 * torch.exp(2 - z)
    torch.testing.assert_close(stats.logprobs, torch.stack([z * 0, 2 - z, -z])[None])
    torch.testing.assert_close(stats.entropy, torch.stack([z * 0, entropy, entropy])[None])
    warm = token_logprobs(model, ids, ones, select, temperature=2.0)
    z = torch.log(torch.tensor(258 + torch.e))
    torch.testing.assert_close(warm.logprobs, torch.stack([z * 0, 1 - z, -z])[None])


def test_temperature_equals_scaled_logits() -> None:
    model = make_model(3, scale=4.0)
    batch = make_batch("right")
    expected = full_forward(model, *batch, temperature=0.8)
    stats = token_logprobs(model, *batch, temperature=0.8, chunk_tokens=5)
    torch.testing.assert_close(stats.logprobs, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.entropy, expected[1], rtol=1e-5, atol=1e-5)


def test_without_entropy_logprobs_are_the_same() -> None:
    model = make_model(3)
    batch = make_batch("right")
    stats = token_logprobs(model, *batch, with_entropy=False)
    assert torch.equal(stats.logprobs, token_logprobs(model, *batch).logprobs)
    assert not stats.entropy.any()


def test_entropy_as_a_constant_is_the_same_number() -> None:
    model = make_model(3)
    batch = make_batch("right")
    constant, followed = (token_logprobs(model, *batch, entropy_gradient=g) for g in (False, True))
    assert torch.equal(constant.entropy, followed.entropy)
    assert not constant.entropy.requires_grad
    assert constant.logprobs.requires_grad and followed.entropy.requires_grad


@pytest.mark.parametrize("chunk_tokens", [1, 4, 1000])
def test_invariant_12_logits_never_exceed_a_chunk(chunk_tokens: int) -> None:
    """[B, T, V] is never held, neither forward nor backward."""
    model = make_model(3)
    ids, attention, select = make_batch("right")
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _m, _i, out: rows.append(out[..., 0].numel()))
    with torch.autograd.graph.saved_tensors_hooks(refuse_logits, lambda tensor: tensor):
        stats = token_logprobs(model, ids, attention, select, chunk_tokens=chunk_tokens)
    selected = int(select.sum())
    assert sum(rows) == selected and max(rows) <= chunk_tokens
    stats.logprobs.sum().backward()
    assert sum(rows) == 2 * selected and max(rows) <= chunk_tokens


def refuse_logits(tensor: Tensor) -> Tensor:
    """Fail when [rows, V] is kept for the backward pass; the head's own matrix is [64, V]."""
    assert tensor.shape[-1:] != (259,) or tensor.shape[0] == 64, "logits kept for backward"
    return tensor


@pytest.mark.parametrize("packed", [False, True])
def test_empty_selection_gives_zero_gradients_to_all_parameters(packed: bool) -> None:
    model = make_model(3)
    ids, attention, select = make_batch("left")
    stats = token_logprobs(model, ids, attention, torch.zeros_like(select), packed=packed)
    assert not stats.logprobs.any() and not stats.entropy.any()
    (stats.logprobs.sum() + stats.entropy.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize(
    ("column", "side"), [(0, "right"), (11, "right"), (3, "left"), (0, "left")]
)
def test_unpredictable_tokens_are_refused(column: int, side: str) -> None:
    ids, attention, select = make_batch(side)
    select[1, column] = True  # row 1 has 9 tokens: columns 0-8 or 3-11
    with pytest.raises(ValueError, match="select_mask"):
        token_logprobs(make_model(3), ids, attention, select)


def test_bad_numbers_are_refused() -> None:
    model, batch = make_model(3), make_batch("right")
    with pytest.raises(ValueError, match="temperature=0"):
        token_logprobs(model, *batch, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_tokens=0"):
        token_logprobs(model, *batch, chunk_tokens=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_known_families_pass_verification(family: str) -> None:
    verify_logprobs(make_model(3, scale=4.0, **FAMILIES[family]))


def test_unknown_head_is_refused() -> None:
    model: PreTrainedModel = make_model(3, scale=4.0)
    forward = type(model).forward

    class Doubled(type(model)):
        def forward(self, *args: object, **kwargs: object) -> object:
            output = forward(self, *args, **kwargs)
            output.logits = output.logits * 2
            return output

    model.__class__ = Doubled
    with pytest.raises(ValueError, match=r"model_type=llama.*logit_transform"):
        verify_logprobs(model)
