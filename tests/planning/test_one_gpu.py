"""One GPU: every model has its published size, and fits its card with all that runs beside it."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
import torch

from tests.helpers.configs import ROOT, checked, compose_config
from zerosearch.planning.memory import memory_rows
from zerosearch.planning.memory_table import GIB, PHASES, check_fits, total
from zerosearch.planning.reading import plan_of

CARDS = {"24gb": 23.6, "80gb": 79.1}  # GiB that such cards really have
SIZES = {  # parameters: model cards
    "smollm2_360m": 361_821_120,
    "qwen2_5_0_5b": 494_032_768,
    "qwen3_0_6b": 596_049_920,
    "llama_3_2_1b": 1_235_814_400,
    "qwen2_5_1_5b": 1_543_714_304,
    "smollm2_1_7b": 1_711_376_384,
    "qwen3_1_7b": 1_720_574_976,
}
PAGE = ROOT / "docs" / "one_gpu.md"
SMALL, LARGE = list(SIZES)[:3], list(SIZES)[3:]
RUNS = [("one_gpu_24gb", name) for name in SMALL]
RUNS += [("one_gpu_24gb_lora", name) for name in LARGE]
RUNS += [("one_gpu_80gb", name) for name in SIZES]
CHAT = {  # the tuned twin of each base model, of the same size
    "qwen3_0_6b": "Qwen/Qwen3-0.6B",
    "qwen3_1_7b": "Qwen/Qwen3-1.7B",
    "llama_3_2_1b": "meta-llama/Llama-3.2-1B-Instruct",
    "smollm2_360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2_1_7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "qwen2_5_0_5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2_5_1_5b": "Qwen/Qwen2.5-1.5B-Instruct",
}


def card_bytes(experiment: str) -> int:
    return int(CARDS[experiment.split("_")[2]] * GIB)


@pytest.mark.parametrize(("name", "parameters"), SIZES.items())
def test_models_have_their_published_size(name: str, parameters: int, tmp_path: Path) -> None:
    model = hydra.utils.instantiate(compose_config(tmp_path, f"model={name}").model).build_on_meta()
    assert model.num_parameters() == parameters
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float32)}
    assert model.is_gradient_checkpointing


@pytest.mark.parametrize(
    "chat",
    [pytest.param(False, id="base"), pytest.param(True, marks=pytest.mark.slow, id="chat")],
)
@pytest.mark.parametrize(("experiment", "name"), RUNS, ids=lambda part: part)
def test_runs_fit_their_card_with_all_that_runs_beside_them(
    experiment: str, name: str, chat: bool, tmp_path: Path
) -> None:
    tuned = [f"model.path={CHAT[name]}", "model.chat=true"] if chat else []
    cfg = checked(tmp_path, f"experiment={experiment}", f"model={name}", *tuned)
    plan = plan_of(cfg)
    assert {p.device.type for p in plan.model.parameters()} == {"meta"}
    trained = [p for p in plan.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}, "master weights"
    assert plan.compute_dtype == torch.bfloat16 and plan.optimizer_states == 2, "AdamW"
    lora = experiment.endswith("lora")
    assert (sum(p.numel() for p in trained) == SIZES[name]) == (not lora)
    assert plan.with_reference == (not lora), "with adapters off, the base is the reference"
    gpu_bytes = card_bytes(experiment)
    rows = memory_rows(plan, gpu_bytes)
    check_fits(rows, gpu_bytes)
    named = {row.name for row in rows}
    assert {"simulator: weights", "vLLM: weights", "fragmentation (a tenth)"} <= named
    others = [row for row in rows if not row.name.startswith("fragmentation")]
    worst = max(total(others, phase) for phase in PHASES)
    assert 1.1 * worst < gpu_bytes, "even were the tenth one of everything"
    if not chat:
        sums = " | ".join(f"{total(rows, phase) / GIB:.1f}" for phase in PHASES)
        said = f"| `{experiment}` | `{name}` | `{cfg.model.path}` | `{CHAT[name]}` | {sums} |"
        assert said in PAGE.read_text().splitlines()


def test_a_larger_simulator_fits_where_the_page_says_so(tmp_path: Path) -> None:
    larger = ["simulator=prompted_3b", "simulator.server.gpu_memory_utilization=0.3"]
    gpu_bytes = card_bytes("one_gpu_24gb")
    for name in ("smollm2_360m", "qwen2_5_0_5b"):
        cfg = checked(tmp_path, "experiment=one_gpu_24gb", f"model={name}", *larger)
        check_fits(memory_rows(plan_of(cfg), gpu_bytes), gpu_bytes)


def test_a_simulator_elsewhere_takes_no_memory_here(tmp_path: Path) -> None:
    api = ["simulator.launch=false", "simulator.endpoints=[https://a/v1]", "simulator.model=m"]
    cfg = checked(tmp_path, "experiment=one_gpu_24gb", *api)
    assert plan_of(cfg).simulator is None and cfg.search.engine.client.model == "m"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["experiment=one_gpu_24gb", "model=qwen2_5_1_5b"], "use experiment=one_gpu_24gb_lora"),
        (["experiment=one_gpu_24gb_lora", "model=qwen2_5_7b"], "experiment=zerosearch_7b_lora"),
        (["experiment=one_gpu_80gb", "model=hf", "model.path=a/b"], "made for model=qwen2_5_0_5b"),
        (["experiment=one_gpu_24gb", "simulator=scripted"], "not for simulator=scripted"),
    ],
)
def test_what_was_not_counted_is_refused(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        checked(tmp_path, *overrides)


def test_whole_training_of_a_larger_model_does_not_fit(tmp_path: Path) -> None:
    cfg = checked(tmp_path, "experiment=one_gpu_80gb", "model=qwen2_5_1_5b")
    with pytest.raises(ValueError, match="GiB"):
        check_fits(
            memory_rows(plan_of(cfg), card_bytes("one_gpu_24gb")), card_bytes("one_gpu_24gb")
        )
