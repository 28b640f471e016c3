"""Small whole runs of `zerosearch train`, and what of their metrics a repeat must equal."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.configs import ROOT, compose_config
from tests.helpers.words import COLOURS, save_word_policy
from zerosearch.commands.train import train
from zerosearch.core.run_date import FILE as DATE
from zerosearch.core.runs import Summary, read_summary

STEPS = 6
MEASURED = ("time/", "throughput/", "memory/")  # and latencies: not of the computation
# what says who worked in a folder, and when; a query that a killed process sent is spent
OF_PROCESSES = {".hydra", ".lock", "tensorboard", "times.csv", "spent.jsonl", DATE}
_TIMES = re.compile(r'"(?:latency|times|seconds)\w*": (?:\{.*?\}|[^,}\n]+)')


def write_questions(path: Path, count: int) -> Path:
    rows = [
        {
            "question": f"colour {n}",
            "golden_answers": [COLOURS[n % 2]],
            "extra_info": {"hops": 1 + n % 2},
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def small_run(folder: Path) -> list[str]:
    """Overrides of a run of seconds: a tiny policy, own questions, two updates per step."""
    policy = folder / "tiny"
    if not policy.exists():
        save_word_policy(policy, ask=0.45, max_position_embeddings=8192)
    train_file = write_questions(folder / "train.jsonl", 12)
    held_out = write_questions(folder / "held_out.jsonl", 5)
    return [
        "made_for=null",  # other numbers follow
        f"model.path={policy}",
        "data=files",
        f"data.files=[{train_file}]",
        f"data.validation.own.path={held_out}",
        "data.validation_batch=2",
        f"policy_steps={STEPS}",
        "questions_per_step=2",
        "algorithm.group_size=8",  # so many episodes that some search in every step
        "algorithm.mini_batches=2",
        "optimizer.lr=0.002",
        "curriculum.end=0.5",
        "episode.max_turns=2",
        "episode.top_k=2",
        "episode.max_prompt_tokens=16",
        "episode.max_turn_tokens=6",
        "episode.max_observation_tokens=96",
        "episode.max_context_tokens=256",
        "trainer=cpu",
        "simulator_check=off",  # the scripted simulator knows no colours
        "trainer.val_check_interval=2",
        "callbacks.checkpoint.every_n_steps=2",
    ]


def run_here(folder: Path, *overrides: str) -> dict[str, Any]:
    """Train in this process; returns the run's summary. Ask for the fixture `trains_here`."""
    folder.mkdir(exist_ok=True)
    summary = Summary(folder)
    try:
        train(compose_config(folder, *overrides), summary)
    finally:
        summary.write()
    return read_summary(folder)


def train_by_command(
    folder: Path, *overrides: str, command: str = "train", timeout_s: float = 600
) -> None:
    """Run a command that trains, its output in `folder/output`; raises where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    with (folder / "output").open("w") as output:
        code = subprocess.run(
            [sys.executable, "-m", "zerosearch", command, *overrides],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        ).returncode
    assert code == 0, (folder / "output").read_text()[-6000:]


def read_metrics(folder: Path) -> list[dict[str, str]]:
    return read_rows(folder / "metrics.csv")


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def computed(row: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in row.items() if not k.startswith(MEASURED) and "latency" not in k}


def facts(folder: Path) -> dict[str, Any]:
    own = {"process", "began", "command", "go_on", "seconds", "seconds_of_all", "git_commit"}
    found = {name: value for name, value in read_summary(folder).items() if name not in own}
    return {
        k: v if not k.startswith(MEASURED) and "latency" not in k else "measured"
        for k, v in found.items()
    }


def differing(folder: Path, other: Path) -> list[str]:
    """The files that one has otherwise than the other, or alone; times and logs are left out."""
    ours, theirs = _contents(folder), _contents(other)
    changed = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    return sorted(changed | (ours.keys() ^ theirs.keys()))


def _contents(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {*path.relative_to(folder).parts} & OF_PROCESSES
        if path.suffix != ".log"
    }


def _content(path: Path) -> Any:
    if path.name == "summary.json":
        return facts(path.parent)
    if path.suffix == ".csv":
        return [*map(computed, read_rows(path))]
    if "checkpoints" in path.parts:
        return None  # one holds times, too; what it comes to is the export
    if path.suffix.startswith(".json"):
        rows = _TIMES.sub("", path.read_text()).splitlines()
        return sorted(rows) if "journal" in path.parts else rows  # written as work ends
    return path.read_bytes()


def saved_run(folder: Path, *overrides: str) -> Path:
    """A run folder with saved overrides and a checkpoint."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    return folder
