"""The quickstart trained through the command line, with tokens sampled by a server of vLLM.

Beside training, in its process: `tests/gpu/test_vllm.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.devices import everywhere, trainer_of
from tests.helpers.runs import read_metrics, train_by_command
from zerosearch.core.runs import read_summary
from zerosearch.policy.source import PolicySource
from zerosearch.serving.generator_server import generator_server
from zerosearch.serving.launch import running

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
STEPS = 3


@contextmanager
def serving(folder: Path, device: str) -> Iterator[str]:
    """A server for the quickstart's policy: on the second GPU, or on the CPU."""
    on_gpu: dict[str, Any] = {"gpus": [1], "dtype": "bfloat16", "gpu_memory_utilization": 0.2}
    settings = generator_server(
        PolicySource(path="pkg://zerosearch/policy/quickstart"),
        folder=str(folder / "policy"),
        port=None,
        max_model_len=640,
        **(on_gpu if device == "cuda" else {}),
    )
    with running(settings, folder) as servers:
        yield servers[0].command.endpoint


@pytest.mark.parametrize("device", everywhere(gpus=2))
def test_quickstart_trains_with_a_server(device: str, tmp_path: Path) -> None:
    """What training computes is what was sampled, after every sync of changed weights."""
    with serving(tmp_path, device) as endpoint:
        train_by_command(
            tmp_path,
            "generator=vllm_server",
            f"generator.endpoints=[{endpoint}]",
            *trainer_of("gpu", device),
            f"policy_steps={STEPS}",
            "questions_per_step=4",
            "optimizer.lr=1e-3",
            "test=false",
            f"paths.log_dir={tmp_path}",
        )
    folder = tmp_path / "train" / "latest"
    assert read_summary(folder)["status"] == "completed"
    rows = read_metrics(folder)
    assert len(rows) == STEPS
    for row in rows:
        assert float(row["rollout/logprob_gap"]) < (1e-4 if device == "cpu" else 0.02)
        assert float(row["rollout/valid"]) == 1.0
    assert float(rows[-1]["loss/kl"]) > 0, "the weights have changed"
