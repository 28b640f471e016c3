"""The quickstart trained through the command line, with tokens sampled by vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.runs import read_metrics
from zerosearch.generation.vllm_serving import generator_server
from zerosearch.policy.source import PolicySource
from zerosearch.simulator.launch import running

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 3


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for the quickstart's policy."""
    folder = tmp_path_factory.mktemp("server")
    settings = generator_server(
        PolicySource(path="pkg://zerosearch/policy/quickstart"),
        folder=str(folder / "policy"),
        port=None,
        max_model_len=640,
    )
    with running(settings, folder) as servers:
        yield servers[0].command.endpoint


@pytest.mark.parametrize("generator", ["vllm", "vllm_server"])
def test_quickstart_trains(generator: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What training computes is what was sampled, after every sync of changed weights."""
    given = [f"generator={generator}"]
    if generator == "vllm_server":
        given.append(f"generator.endpoints=[{request.getfixturevalue('endpoint')}]")
    sizes = [f"policy_steps={STEPS}", "questions_per_step=4", "optimizer.lr=1e-3"]
    where = ["trainer=cpu", "test=false", f"paths.log_dir={tmp_path}"]
    subprocess.run(
        [sys.executable, "-m", "zerosearch.train", *given, *sizes, *where],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
        check=True,
        timeout=1000,
    )
    folder = tmp_path / "train" / "latest"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    rows = read_metrics(folder)
    assert len(rows) == STEPS
    for row in rows:
        assert float(row["rollout/logprob_gap"]) < 1e-4
        assert float(row["rollout/valid"]) == 1.0
    assert float(rows[-1]["loss/kl"]) > 0, "the weights have changed"
