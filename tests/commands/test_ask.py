"""`zerosearch ask` as a user runs it: one question, several, a pipe, scripts."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.processes import run_forked
from zerosearch.commands.ask import split_arguments, typed
from zerosearch.rollout.settings import EpisodeSettings

WORLD = ["model=quickstart", "search=scripted"]


def ask(*arguments: str, said: str = "", code: int = 0) -> tuple[str, str]:
    """Standard output and standard error."""
    done = run_forked("ask", *arguments, said=said)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "questions", "rest"),
    [
        (["Who wrote it?", "search=web"], ["Who wrote it?"], ["search=web"]),
        (["Is 1+1 = 2, really?", "--json"], ["Is 1+1 = 2, really?"], ["json=true"]),
        (["Why?", "seed=1", "When?"], ["Why?", "When?"], ["seed=1"]),
        (["--cfg", "--help"], [], ["--cfg", "--help"]),
        (["--cfg", "job", "Why?", "seed=1"], ["Why?"], ["--cfg", "job", "seed=1"]),
    ],
)
def test_questions_are_told_from_settings(
    arguments: list[str], questions: list[str], rest: list[str]
) -> None:
    assert split_arguments(arguments) == (questions, rest)


def test_lines_of_json_from_a_pipe_and_nothing_else() -> None:
    said = "In which country is Lyon?\n\nWhat, then, is the 'capital' of Chad = ?\n"
    done = subprocess.run(
        [sys.executable, "-m", "zerosearch", "ask", "--json", *WORLD],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        input=said,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["question"] for row in rows] == [line for line in said.splitlines() if line]
    assert all(set(row) >= {"answer", "stop", "searches", "turns"} for row in rows)
    assert "ERROR" not in done.stderr


def test_a_question_that_does_not_fit_costs_no_other() -> None:
    said = f"In which country is Lyon?\n{'word ' * 3_000}\nIn which country is Lyon?\n"
    out, _ = ask("--json", *WORLD, said=said, code=1)
    first, long, last = [json.loads(line) for line in out.splitlines()]
    assert first["answer"] and last["answer"] and not (first["error"] or last["error"])
    assert long["answer"] is None and "episode.max_prompt_tokens" in long["error"]


def test_bad_settings_are_one_sentence_on_standard_error() -> None:
    shown, errors = ask("Who?", "checkpoint=no/such/place", "--json", code=2)
    assert shown == "" and "checkpoint=no/such/place: there is nothing" in errors


def test_the_policy_that_answers_is_named_or_asked_for(tmp_path: Path) -> None:
    shown, errors = ask("Who?", f"paths.log_dir={tmp_path}", "--json", code=2)
    [line] = errors.splitlines()
    assert shown == "" and f"no run under {tmp_path / 'train'} was completed" in line
    run = tmp_path / "train" / "runs" / "a"
    shutil.copytree(ROOT / "src" / "zerosearch" / "policy" / "quickstart", run / "policy")
    settings = {
        "episode": EpisodeSettings(prompt_template="search", top_k=1).as_dict(),
        "chat": False,
    }
    (run / "policy" / "zerosearch.json").write_text(json.dumps(settings))
    (run / "summary.json").write_text('{"status": "completed", "test/f1": 0.25}')
    shown, errors = ask("In which country is Lyon?", *WORLD[1:], f"paths.log_dir={tmp_path}")
    assert f"checkpoint: {run} (the last completed run; F1 0.250)" in errors


def test_a_question_that_gets_no_answer_is_an_exit_code(tmp_path: Path) -> None:
    broken = [
        "model=quickstart",
        "search=scripted",
        "simulator.failure_rate=1",
        "temperature=1",
        "seed=3",
    ]
    words = [f"In which country is Lyon? {n}" for n in range(20)]
    shown, _ = ask("--json", *broken, said="\n".join(words), code=1)
    rows = [json.loads(line) for line in shown.splitlines()]
    assert len(rows) == 20 and any(row["error"] for row in rows)
    assert all(row["answer"] is None for row in rows if row["error"])


def test_lines_of_a_pipe_end_at_a_line_feed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = io.BytesIO("Who wrote\rHamlet?\r\n\nWhere is\x85Oslo?\u2028 Now?\n".encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(sent, encoding="utf-8"))
    assert [*typed(None)] == ["Who wrote\rHamlet?", "Where is\x85Oslo?\u2028 Now?"]
