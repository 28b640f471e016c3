"""Runs that are killed where their last checkpoint is behind them, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.runs import computed, facts, read_metrics, small_run, transcripts

KILL = "import os, signal; kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL); "
DEATHS = {
    "export": "import zerosearch.training.base_module as place; place.save_policy = kill; ",
    "test": "import zerosearch.training.module as place; "
    "place.SearchPolicyModule.on_test_epoch_end = lambda self: kill() "
    "if self.phase == 'test' else type(self).on_validation_epoch_end(self); ",
    "summary": "import zerosearch.core.runs as place; write = place.Summary.write; "
    "place.Summary.write = lambda self: kill() if self.facts['status'] == 'completed' "
    "else write(self); ",
}


def run(*words: str, death: str = "") -> int:
    code = f"{death and KILL + DEATHS[death]}from zerosearch.cli import main; main()"
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "train", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("whole")
    words = [*small_run(folder), "policy_steps=2"]
    assert run(*words, f"hydra.run.dir={folder / 'run'}") == 0
    return folder / "run", words


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS)
def test_a_run_killed_after_its_last_checkpoint_ends_as_one_that_was_not(
    death: str, whole: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert run(*whole[1], f"hydra.run.dir={folder}", death=death) == -signal.SIGKILL
    assert json.loads((folder / "summary.json").read_text())["status"] == "running"
    assert run(f"resume={folder}") == 0
    assert facts(folder) == facts(whole[0])
    assert transcripts(folder) == transcripts(whole[0])
    ours, theirs = map(read_metrics, (folder, whole[0]))
    assert [*map(computed, ours)] == [*map(computed, theirs)]
