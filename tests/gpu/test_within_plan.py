"""What a run takes of a GPU is what the plan says that it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.configs import compose_config
from tests.helpers.devices import everywhere, trainer_of
from tests.helpers.models import make_tokenizer
from tests.helpers.runs import read_metrics, train_by_command
from zerosearch.planning.memory import memory_rows
from zerosearch.planning.memory_table import GIB, PHASES, total
from zerosearch.planning.reading import plan_of

pytestmark = pytest.mark.timeout(300)

TOLERANCE = 0.15
NOT_ALLOCATED = ("fragmentation", "CUDA")  # no tensors: beside what torch has handed out
RUN = [  # 32 episodes of about 320 tokens fill micro-batches and chunks of logits
    "made_for=null",
    "model=qwen2_5_0_5b",
    "model.random_init=true",
    "model.gradient_checkpointing=true",
    "episode.max_turns=1",
    "episode.max_prompt_tokens=256",
    "episode.max_turn_tokens=256",
    "episode.max_context_tokens=1024",
    "questions_per_step=4",
    "algorithm.group_size=8",
    "module.tokens_per_micro_batch=4096",
    "module.logprob_chunk_tokens=1024",
    "policy_steps=2",
    "test=false",
    "simulator_check=off",
    "~callbacks.checkpoint",  # gigabytes that nobody reads
    "~callbacks.export",
]
SMALL = [
    "model.architecture.vocab_size=512",
    "model.architecture.hidden_size=64",
    "model.architecture.intermediate_size=128",
    "model.architecture.num_hidden_layers=2",
    "model.architecture.num_attention_heads=4",
    "episode.max_turn_tokens=8",
]


@pytest.mark.parametrize("device", everywhere())
def test_a_run_takes_what_is_planned(device: str, tmp_path: Path) -> None:
    """A model of 0.5B is trained whole; in its second step the optimizer has its states."""
    make_tokenizer().save_pretrained(tmp_path / "policy")
    overrides = [*RUN, f"model.path={tmp_path / 'policy'}", *trainer_of("gpu", device)]
    overrides += SMALL if device == "cpu" else []
    plan = plan_of(compose_config(tmp_path, *overrides))
    rows = memory_rows(plan, 80 * GIB)
    held = [row for row in rows if not row.name.startswith(NOT_ALLOCATED)]
    planned = max(total(held, phase) for phase in PHASES)
    out = tmp_path / "run"
    train_by_command(tmp_path / "started", *overrides, f"hydra.run.dir={out}")
    _, second = read_metrics(out)
    assert float(second["rollout/truncated"]) == 1, "as long as planned: it never ends by itself"
    if device == "cuda":
        taken = float(second["memory/peak_gib"]) * GIB
        assert taken == pytest.approx(planned, rel=TOLERANCE)
