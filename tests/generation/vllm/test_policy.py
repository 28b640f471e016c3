"""What vLLM is told of the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from transformers import AutoConfig

from tests.helpers.models import LLAMA, save_policy_folder
from tests.helpers.training import make_training
from tests.helpers.tuning import make_data, make_module, write_rows
from zerosearch.generation.vllm.policy import VLLMPolicy
from zerosearch.policy.sharding import compute_dtype
from zerosearch.policy.source import PolicySource
from zerosearch.serving import generator_server as vllm_serving


def training(folder: Path) -> LightningModule:
    return make_training()


def tuning(folder: Path) -> LightningModule:
    data = make_data(write_rows(folder / "rows.jsonl"))
    return make_module(PolicySource(path=str(save_policy_folder(folder / "policy"))), data)


@pytest.mark.parametrize("made", [training, tuning])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)]
)
def test_the_engine_takes_what_the_trainer_computes_in(
    made: Any, precision: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Flash attention, which vLLM takes on a GPU, cannot compute in float32."""
    module = made(tmp_path)
    module.trainer = Trainer(
        accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False
    )
    module.configure_model()
    assert {p.dtype for p in module.model.parameters()} == {torch.float32}, "what is kept"
    assert compute_dtype(module.model) == dtype
    assert VLLMPolicy(module.model, module.tokenizer, dtype="auto", lora="merged").dtype == dtype
    assert VLLMPolicy(module.model, module.tokenizer, dtype="float32", lora="merged").dtype == (
        torch.float32
    )


@pytest.mark.parametrize(("on_gpu", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_servers_start_in_what_is_trained_in(
    on_gpu: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_serving, "check_installed", lambda: "0.32.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    source = PolicySource(path=str(save_policy_folder(tmp_path / "policy")))
    settings = vllm_serving.generator_server(source, folder=str(tmp_path / "served"), gpus=[0])
    assert settings.dtype == dtype


def test_servers_are_built_from_the_files_of_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published sizes of configs/model/ do not say how a Llama 3.2 rotates its positions."""
    monkeypatch.setattr(vllm_serving, "check_installed", lambda: "0.32.0")
    folder = save_policy_folder(tmp_path / "policy")
    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters |= {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    config.save_pretrained(folder)
    source = PolicySource(path=str(folder), architecture=dict(LLAMA))
    vllm_serving.generator_server(source, folder=str(tmp_path / "served"), gpus=[0])
    served = AutoConfig.from_pretrained(tmp_path / "served")
    assert served.rope_parameters == source.load_model().config.rope_parameters
    source.architecture = LLAMA | {"hidden_size": 128}
    with pytest.raises(ValueError, match=r"model\.architecture\.hidden_size=128"):
        vllm_serving.generator_server(source, folder=str(tmp_path / "served"), gpus=[0])
