"""The GPU benchmarks with tiny sizes on a CPU, so that they move with the code."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.helpers.configs import ROOT
from tests.helpers.pages import MARKDOWN

FOLDER = ROOT / "benchmarks" / "gpu"
TINY_STEP = ["--tokens", "64", "--traj", "4", "--steps", "1", "--device", "cpu"]
TINY_ROLLOUT = ["--rows", "3", "--prompt", "8", "--new", "5", "--repeats", "1"]


def load(name: str) -> ModuleType:
    """A script as a module; its folder stays one of scripts alone."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        spec.loader.exec_module(module)
    return module


def results(printed: str) -> list[dict[str, Any]]:
    marked = [line for line in printed.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line.removeprefix("RESULT ")) for line in marked]


@pytest.mark.parametrize(
    ("arguments", "how"),
    [
        (["tiny", "--var", "1"], "sdpa"),
        (["--size", "tiny", "--attn", "eager", "--ckpt", "0"], "eager, no checkpointing"),
    ],
)
def test_the_training_step_is_measured(
    arguments: list[str], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load("train_step").main([*arguments, *TINY_STEP])
    [found] = results(capsys.readouterr().out)
    assert found["how"] == how and found["size"] == "tiny"
    assert 4 * 16 <= found["tokens"] <= 4 * 64 and found["tokens_per_s"] > 0
    assert "mfu" not in found, "a CPU has no peak in the table"


def test_a_step_on_a_known_card_has_its_utilisation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a card of a million operations a second: a stand-in for one that is known."""
    script = load("train_step")
    monkeypatch.setattr(script, "peak_of", lambda device: 1e6)
    script.main(["tiny", *TINY_STEP])
    [found] = results(capsys.readouterr().out)
    layers = 2 * (2 * 36_864 * 4 * 64 + 4 * 64 * 4 * 64 * 65 // 2)  # weights, and attention
    head = 2 * 64 * 1000 * 4 * 48  # prompts have 16 tokens
    operations = found["mfu"] * found["passes_s"] * 1e6
    assert operations == pytest.approx(3 * (layers + head), rel=0.1)
    assert found["mfu"] < found["hfu"] < 4 / 3 * found["mfu"]


def test_a_rollout_of_transformers_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    load("generate").main(["cpu", *TINY_ROLLOUT, "--without-vllm"])
    [found] = results(capsys.readouterr().out)
    assert found["what"] == "rollout" and found["tokens_per_s"] > 0
    assert found["how"] == "transformers, 3 rows, 8 + 5 tokens"


@pytest.mark.slow
@pytest.mark.vllm
def test_the_whole_table_is_made_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    load("table").main(["--size", "tiny", "--device", "cpu", "--out", str(page)])
    text = page.read_text()
    assert text.startswith("# Page\n\n### 20") and ", CPU, torch " in text and "commit " in text
    first = [row.split("|")[1].strip() for row in text.splitlines() if row.startswith("|")]
    assert first == ["what", "---", *["training step"] * 3, "rollout", "rollout", "sync"], text


def test_a_case_that_fails_has_the_end_of_its_error_in_the_table() -> None:
    script = load("table")
    [found] = script.run(["missing.py", "--size", "huge", "--device", "cpu"], 60)
    assert found["what"] == "missing.py" and found["size"] == "huge"
    assert found["how"].startswith("--device cpu: ") and "can't open file" in found["how"]
    rows = [found, {"what": "sync", "size": "3b", "how": "vllm", "sync_s": 0.5, "peak_gib": None}]
    text = script.table(rows, "a card")
    assert [token.type for token in MARKDOWN.parse(text)][3] == "table_open"
    assert "| what | size | how | sync s |\n" in text and "| sync | 3b | vllm | 0.5 |\n" in text


def test_every_size_is_measured_padded_packed_and_compiled() -> None:
    found = load("table").cases(["0.5b", "3b"], "cuda")
    for size in ("0.5b", "3b"):
        own = [" ".join(case) for case in found if size in case]
        for wanted in ("--attn sdpa", "--attn auto", "--compile 1", "generate.py"):
            assert any(wanted in case for case in own), (size, wanted)


def test_a_table_of_a_cpu_does_not_go_to_the_page_of_gpus() -> None:
    with pytest.raises(SystemExit):
        load("table").main(["--size", "tiny", "--device", "cpu"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("name", ["table", "train_step", "generate"])
def test_without_a_gpu_a_sentence_says_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`make bench-gpu` measured nothing there, and appended a table of errors to the page."""
    with pytest.raises(SystemExit):
        load(name).main([])
    said = capsys.readouterr().err
    assert "no CUDA GPU is visible here; --size tiny --device cpu" in said
