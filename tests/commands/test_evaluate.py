"""`zerosearch evaluate` as a user runs it: tables, a kill half-way, a lost engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.errors import InstantiationException

from tests.helpers.configs import ROOT, compose_config, hydra_run
from tests.helpers.processes import Forked, run_forked
from tests.helpers.runs import write_questions
from tests.helpers.waiting import wait_until
from tests.helpers.words import save_word_policy
from zerosearch.commands.evaluate import evaluate
from zerosearch.core.runs import Summary

TIMEOUT_S = 600
PROMPTED = ["prompted=chat", "prompted.endpoints=[x]", "prompted.model=m"]
# An engine of the world's facts: what the word policy asks is no place, so nothing is ever found.
ENGINE = ["search=scripted"]
EPISODE = [
    "made_for=null",
    "episode.max_turns=2",
    "episode.top_k=2",
    "episode.max_prompt_tokens=16",
    "episode.max_turn_tokens=6",
    "episode.max_observation_tokens=96",
    "episode.max_context_tokens=256",
]
SAME = ("table.md", "table.csv", "table.tex")


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of an evaluation of 24 questions in four blocks."""
    policy = save_word_policy(tmp_path / "tiny", ask=0.45, max_position_embeddings=8192)
    questions = write_questions(tmp_path / "nq.jsonl", 24)

    def make(folder: Path, *overrides: str) -> list[str]:
        return [
            *("evaluate", f"checkpoint={policy}"),
            *("benchmark=nq", f"benchmark.nq.source.path={questions}", "block=6", "temperature=1"),
            *(*ENGINE, *EPISODE, f"paths.log_dir={tmp_path}", f"hydra.run.dir={folder}"),
            *overrides,
        ]

    return make


def run(command: list[str], *, forked: bool = False) -> str:
    if forked:
        done = run_forked(*command, env=environment())
    else:
        done = subprocess.run(
            [sys.executable, "-m", "zerosearch", *command],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    assert "Traceback" not in shown
    return shown


def environment() -> dict[str, str]:
    wide = {"COLUMNS": "160"}  # a table that is not cut
    return os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **wide}


def outputs(folder: Path) -> dict[str, bytes]:
    """What equal runs write in equal bytes."""
    files = [*(folder / name for name in SAME), *sorted((folder / "answers").rglob("*.jsonl"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_runs_and_one_that_was_killed_give_identical_bytes(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    shown = run(command(tmp_path / "one"))
    assert "policy (scripted)" in shown and "NQ" in shown
    assert "The engine scripted knows little of these questions" in shown
    whole = outputs(tmp_path / "one")
    assert set(whole) == {*SAME, "answers/policy/search/nq.jsonl"}
    rows = [json.loads(line) for line in whole["answers/policy/search/nq.jsonl"].splitlines()]
    assert len(rows) == 24 and {"red", "green"} < {row["answer"] for row in rows}
    assert b"Qwen2.5-7B ZeroSearch-base*" in whole["table.md"]
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["status"] == "completed" and summary["test/policy/search/nq/count"] == 24

    journal = tmp_path / "two" / "journal" / "policy" / "search" / "nq.jsonl"
    slow = command(tmp_path / "two", "search.engine.latency_s=0.2")
    running = Forked(*slow, env=environment())
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 6)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = journal.read_bytes()
    assert kept.count(b"\n") < 24, "it was killed half-way"
    shown = run(["evaluate", f"resume={tmp_path / 'two'}"], forked=True)
    assert "knows little" not in shown, "it was asked before"
    assert journal.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1]), "nothing is asked again"
    assert outputs(tmp_path / "two") == whole


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed")
def test_vllm_answers_as_transformers_do(command: Callable[..., list[str]], tmp_path: Path) -> None:
    save_word_policy(tmp_path / "tiny", max_position_embeddings=8192, head_dim=32)  # vLLM's kernels
    greedy = ["temperature=0", "limit=6"]
    run(command(tmp_path / "one", *greedy))
    run(command(tmp_path / "two", *greedy, "generator=vllm"))
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")


@pytest.fixture
def evaluated(command: Callable[..., list[str]]) -> Callable[..., Summary]:
    """The same in this process, which saves seconds of imports."""

    def inside(folder: Path, *overrides: str) -> Summary:
        arguments = [each for each in command(folder, *overrides)[1:] if "hydra.run" not in each]
        folder.mkdir()
        with hydra_run(compose_config(folder, *arguments, name="evaluate", whole=True)) as cfg:
            summary = Summary(folder)
            evaluate(cfg, summary)
            return summary

    return inside


def test_a_lost_engine_ends_the_run_with_its_name(
    evaluated: Callable[..., Summary], tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        evaluated(tmp_path / "run", "search.engine.failure_rate=1", "max_failed_share=0.3")
    said = str(caught.value)
    assert "questions failed, more than max_failed_share=0.3 allows" in said
    assert "scripted simulator" in said and "resume=<run folder>" in said
    facts = evaluated(
        tmp_path / "allowed", "search.engine.failure_rate=1", "max_failed_share=1"
    ).facts
    assert (tmp_path / "evaluate" / "latest").resolve() == tmp_path / "allowed"
    assert facts["checkpoint"] == str(tmp_path / "tiny")
    assert facts["test/policy/search/nq/failed"] > 0 and facts["test/policy/search/nq/count"] == 24


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["benchmark.nq.source.path=none.jsonl"], "'none.jsonl' does not exist"),
        (["methods=[direct]", *PROMPTED], r"prompted\.endpoints='?x"),
        (["block=0"], "block=0: give 1 or more"),
        (["checkpoint=nowhere/at/all"], "checkpoint=nowhere/at/all: there is nothing"),
        (["checkpoint=latest"], "no run under .*train has a policy yet"),
        (["temperature=-1"], "temperature=-1: give at least 0"),
        (["methods.policy.engines=[google]"], "none of"),
    ],
)
def test_bad_input_is_one_sentence(
    evaluated: Callable[..., Summary], overrides: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, InstantiationException), match=said):
        evaluated(tmp_path / "run", *overrides)
    assert not (tmp_path / "evaluate" / "latest").is_symlink(), "it never began"
