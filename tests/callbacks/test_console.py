"""What people read of a training: on a terminal, in a file, and line by line."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.policy_stub import PolicyStub, make_trainer
from tests.helpers.processes import Forked, run_forked
from tests.helpers.runs import small_run
from tests.helpers.terminal import Terminal
from zerosearch.callbacks.console import ConsoleLines, evaluation_lines, step_line
from zerosearch.core.runs import read_summary

STEPS = 3
STEP = rf"\d\d:\d\d:\d\d step \d/{STEPS}  reward 0\.\d\d  searches \d\.\d  noise 0\.\d\d  kl 0\.\d+"
F1 = r"F1 0\.\d{3} \(bm25, 5 questions\), 95% CI 0\.\d{3}-[01]\.\d{3}, searches \d\.\d\d"


def settings(folder: Path) -> list[str]:
    place = [f"paths.log_dir={folder / 'logs'}", f"hydra.run.dir={folder / 'run'}"]
    return [*small_run(folder), *place, f"policy_steps={STEPS}", "trainer.val_check_interval=3"]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    return kept | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **more}


@pytest.mark.slow
def test_a_run_reads_well_in_a_file_and_says_when_it_is_complete(tmp_path: Path) -> None:
    done = run_forked("train", *settings(tmp_path), env=environment())
    assert done.returncode == 0, done.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout), "no control characters"
    lines = done.stdout.splitlines()
    told = [line[9:] for line in lines if line[2:3] == ":"]
    assert len([line for line in lines if re.match(STEP, line)]) == STEPS
    assert [t for t in told if t.startswith("step ")] == sorted(t for t in told if "step " in t[:5])
    begins = told.index("what runs:")
    for name in ("model", "algorithm   grpo", "engine      simulated", "simulator   scripted"):
        assert f"\n    {name}" in done.stdout
    for name in ("a step      2 questions x 8 episodes", "device      1 x cpu", "folder "):
        assert f"\n    {name}" in done.stdout
    before = [n for n, t in enumerate(told) if re.fullmatch(f"before training: {F1}", t)]
    assert [begins] < before and len(before) == 1
    assert any(re.fullmatch(f"validation: {F1}", t) for t in told)
    assert any(re.fullmatch(f"after training: {F1}", t) for t in told)
    assert re.search(
        r"completed after \d+ s: F1 0\.\d{3} -> 0\.\d{3} \(bm25, 5 questions\)", told[-1]
    )
    following = [line.strip() for line in lines[-3:]]
    assert all(line.startswith("next: ") for line in following)
    assert following[2].endswith(f"resume={tmp_path / 'run'} policy_steps={2 * STEPS}")
    log = (tmp_path / "run" / "train.log").read_text()
    assert re.search(r"^\[\d{4}-.+\]\[zerosearch\.callbacks\.console\]\[INFO\] - step 1", log, re.M)

    first = read_summary(tmp_path / "run")
    again = run_forked("train", f"resume={tmp_path / 'run'}", env=environment())
    assert again.returncode == 0, again.stdout
    assert f"this run is complete, its {STEPS} steps are done" in again.stdout
    second = read_summary(tmp_path / "run")
    measured = ("process", "began", "host", "seconds", "seconds_of_all")
    assert {k: v for k, v in first.items() if k not in measured} == {
        k: v for k, v in second.items() if k not in measured
    }
    assert second["seconds_of_all"] == pytest.approx(
        first["seconds_of_all"] + second["seconds"], abs=0.2
    )
    names = [*first]
    assert names[0] == "status" and names.index("test/f1") < names.index("differs") < 12
    assert first["go_on"] == f"zerosearch train resume={tmp_path / 'run'}"
    assert "policy_steps=3" in first["differs"]


@pytest.mark.slow
def test_a_bar_on_a_terminal_tears_no_line_and_is_gone_at_the_end(tmp_path: Path) -> None:
    with Terminal(columns=100) as terminal:
        running = Forked(
            "train", *settings(tmp_path), env=environment(TERM="xterm"), terminal=terminal.path
        )
        assert running.wait() == 0
    shown = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", terminal.received)
    assert re.search(r"training ━+ \d/3", shown) and "after training, answers ━" in shown
    assert " 10/10 " in shown, "5 questions with two engines: the bar counts answers"
    lines = [line for line in terminal.lines() if line]
    assert len([line for line in lines if re.fullmatch(rf"{STEP}.*(left|tok/s)", line)]) == STEPS
    assert not [line for line in lines if "━" in line], "no bar is left"
    begins = next(n for n, line in enumerate(lines) if "before training" in line)
    ends = next(n for n, line in enumerate(lines) if "completed after" in line)
    told = lines[begins:ends]  # the others may be wider, by a path
    assert len(told) > STEPS and all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in told), told
    assert max(len(line) for line in lines if "step" in line or "F1" in line) <= 100


def test_lines_come_every_so_many_steps_and_for_the_first_and_the_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    trainer = make_trainer(5, callbacks=[ConsoleLines(every_n_steps=2)], val_every=None)
    trainer.fit(PolicyStub(5))
    said = [text.split("  ")[0] for text in caplog.messages if text.startswith("step ")]
    assert said == ["step 1/5", "step 2/5", "step 4/5", "step 5/5"]


def test_a_step_is_one_line_that_fits_beside_the_time() -> None:
    metrics = {
        "reward/total": 0.283,
        "rollout/searches": 1.12,
        "curriculum/noise_probability": 0.0912,
        "loss/kl": 0.0312,
        "throughput/tokens_per_s": 3_149.0,
    }
    said = step_line(14, 1000, metrics, seconds_left=100.0)
    told = "reward 0.28  searches 1.1  noise 0.09  kl 0.031  3.1k tok/s  2 min left"
    assert said == f"step   14/1000  {told}"
    assert len("18:16:20 " + said) <= 100
    assert "left" not in step_line(30, 30, metrics, 0.0)
    assert step_line(9, 10, {"loss/reply": 1.5}, 7.0) == "step  9/10  loss 1.500  7 s left"


def test_an_evaluation_names_its_engine_and_its_interval() -> None:
    def named(prefix: str, f1: float) -> dict[str, float]:
        of = {"f1": f1, "f1_low": f1 - 0.01, "f1_high": f1 + 0.01, "em": 0.1, "count": 512.0}
        return {f"{prefix}/{k}": v for k, v in (of | {"rollout/searches": 0.02}).items()}

    found = named("start/bm25", 0.022) | {"start/bm25/hops_1/f1": 0.5}
    assert evaluation_lines("start/bm25", found) == [
        "before training: F1 0.022 (bm25, 512 questions), 95% CI 0.012-0.032, searches 0.02"
    ]
    tuned = {"val/loss": 1.25, "val/token_accuracy": 0.5} | named("val/bm25", 0.5)
    assert evaluation_lines("val", tuned) == [
        "validation: loss 1.250, 50% of tokens foretold",
        "validation: F1 0.500 (bm25, 512 questions), 95% CI 0.490-0.510, searches 0.02",
    ]
