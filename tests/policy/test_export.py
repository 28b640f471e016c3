"""Exports load with plain `from_pretrained`, are whole or absent, and do not touch the policy."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.helpers.models import make_model, make_tokenizer
from zerosearch.policy.export import load_settings, save_policy

IDS = torch.arange(3, 12)[None]
EXTRA = {"max_turns": 4, "top_k": 3, "formatter": "plain", "prompt": "Antwort für {question}"}


def lora_policy(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    lora = LoraConfig(r=4, init_lora_weights=False, **settings)  # type: ignore[arg-type]
    return get_peft_model(make_model(3, scale=3.0), lora)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}, {"model_type": "qwen2"}])
def test_round_trip_is_exact(tmp_path: Path, fields: dict) -> None:
    model = make_model(3, scale=3.0, **fields)
    folder = save_policy(model, make_tokenizer(bos=True), tmp_path / "a" / "policy", EXTRA)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(model))
    assert type(loaded) is type(model)
    assert AutoTokenizer.from_pretrained(folder)("Who?").input_ids[0] == 257
    assert load_settings(folder) == EXTRA
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["policy"]


def test_dtype_and_generation_config_survive(tmp_path: Path) -> None:
    model = make_model(3).bfloat16()
    model.generation_config.eos_token_id = [256, 258]
    folder = save_policy(model, make_tokenizer(), tmp_path / "policy", {})
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    assert loaded.generation_config.eos_token_id == [256, 258]


def test_published_settings_that_transformers_reads_and_does_not_write(tmp_path: Path) -> None:
    model = make_model(3)
    model.save_pretrained(tmp_path / "published")
    file = tmp_path / "published" / "generation_config.json"
    sampling = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [256, 258], "pad_token_id": -1}
    file.write_text(json.dumps(json.loads(file.read_text()) | sampling))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "published")
    folder = save_policy(loaded, make_tokenizer(), tmp_path / "policy", {})
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert again.generation_config.eos_token_id == [256, 258]
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "v_proj", "lm_head"]},
    ],
)
def test_lora_is_merged_and_the_policy_untouched(tmp_path: Path, settings: dict) -> None:
    policy = lora_policy(**settings)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.5)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    expected = logits(policy)
    folder = save_policy(policy, make_tokenizer(), tmp_path / "policy", EXTRA)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(make_model(3, scale=3.0)), expected, atol=1e-2)
    after = policy.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(logits(policy), expected)


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    save_policy(make_model(1), make_tokenizer(), folder, {"step": 1})
    (folder / "stray.txt").write_text("of the earlier export")
    save_policy(make_model(2), make_tokenizer(), folder, {"step": 2})
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(make_model(2)))
    assert load_settings(folder) == {"step": 2}
    assert not (folder / "stray.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_full_disk_leaves_the_earlier_export_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_policy(make_model(1), make_tokenizer(), tmp_path / "policy", {"step": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(OSError, match=r"could not be exported to .*policy .*No space left"):
        save_policy(make_model(2), make_tokenizer(), folder, {"step": 2})
    assert load_settings(folder) == {"step": 1}
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(make_model(1)))
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_settings_that_are_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be stored in zerosearch.json"):
        save_policy(make_model(1), make_tokenizer(), tmp_path / "policy", {"x": object()})
    assert not (tmp_path / "policy").exists()


def test_settings_are_readable_text(tmp_path: Path) -> None:
    folder = save_policy(make_model(1), make_tokenizer(), tmp_path / "policy", EXTRA)
    text = (folder / "zerosearch.json").read_text(encoding="utf-8")
    assert "für" in text and json.loads(text) == EXTRA
    with pytest.raises(ValueError, match="not a policy exported by a training run"):
        load_settings(tmp_path)
