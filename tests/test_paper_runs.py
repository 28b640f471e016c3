"""Each of the paper's runs trains two steps on CPUs, is killed in the second one and goes on.

They run as `docs/scale.md` says, by the command line: two processes where they shard, vLLM beside
them or as a server, a simulator over HTTP. That page lists what is overridden here, and no more is.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hydra
import psutil
import pytest
from omegaconf import DictConfig
from safetensors.torch import load_file

from tests.helpers.configs import CONFIGS, ROOT, compose_config
from tests.helpers.openai_server import OpenAIServer, Reply
from tests.helpers.published import (
    HEAD_DIM,
    SIZES,
    save_published_policy,
    simulate,
    write_published_rows,
)
from tests.helpers.runs import computed, read_metrics
from zerosearch.callbacks.curriculum import noise_probability
from zerosearch.core.quiet import quiet_libraries
from zerosearch.core.runs import read_summary

RUNS = sorted(path.stem for path in CONFIGS.glob("experiment/zerosearch_*.yaml"))
ALL_BUT_LORA = [name for name in RUNS if name != "zerosearch_7b_lora"]  # it is for one GPU
OVERRIDDEN = {  # in which runs; words in capitals are places
    **dict.fromkeys(
        [
            "policy_steps=2",
            "questions_per_step=4",
            "trainer.val_check_interval=1",
            "callbacks.checkpoint.every_n_steps=1",
            *(f"model.architecture.{field}={size}" for field, size in SIZES.items()),
            "trainer.accelerator=cpu",
            "model.path=POLICY",
            "paths.data_dir=DATA",
            "paths.log_dir=LOGS",
            "simulator.endpoints=[SIMULATOR]",
        ],
        RUNS,
    ),
    f"model.architecture.head_dim={HEAD_DIM}": ["zerosearch_llama_3b"],
    "trainer.devices=2": ALL_BUT_LORA,
    "trainer.num_nodes=1": ["zerosearch_14b"],
    "generator.endpoints=[GENERATOR]": ["zerosearch_7b_split"],
}
HELD_OUT = 6  # rows
SIBLINGS = 5
TIMEOUT_S = 600  # a guard against hanging, on a busy machine too
PAGE = ROOT / "docs" / "scale.md"
SECTION = "\n## What a CPU run of these experiments overrides\n"


def overrides(name: str, places: Mapping[str, str]) -> list[str]:
    """What a run is told beside `experiment=`."""
    told = [override for override, runs in OVERRIDDEN.items() if name in runs]
    return [re.sub("[A-Z]{3,}", lambda found: places[found[0]], each) for each in told]


class Simulator:
    """Answers at once; but when `checkpoint` is there the first search waits, for a kill."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.held = threading.Event()
        self.killed = threading.Event()

    def answer(self, body: dict[str, Any]) -> Reply:
        if not self.killed.is_set() and self.checkpoint.exists():
            self.held.set()
            self.killed.wait(TIMEOUT_S)
        return simulate(body)


@contextmanager
def started(
    command: str, output: Path, *arguments: str, ended_by: signal.Signals, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A command, ended with all that it has started."""
    own = {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", **environment}
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "zerosearch", command, *arguments],
            cwd=ROOT,
            env=os.environ | own,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                launcher = psutil.Process(process.pid)
                family = [launcher, *launcher.children(recursive=True)]
                for each in family if ended_by == signal.SIGKILL else family[:1]:
                    each.send_signal(ended_by)
                process.wait(TIMEOUT_S)
                psutil.wait_procs(family[1:], timeout=TIMEOUT_S)


def training(
    folder: Path, name: str, *arguments: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    """A run with its output in `<folder>/<name>`; what is left of it when killed lies there too."""
    output, here = folder / name, str(folder)
    return started("train", output, *arguments, ended_by=signal.SIGKILL, TMPDIR=here)


@contextmanager
def serving(model: str, told: list[str], base: Path) -> Iterator[str]:
    """The server of `make generator model=NAME episode=paper`; yields its endpoint."""
    own = [each for each in told if each.startswith(("model.", "paths."))]
    arguments = [f"model={model}", "episode=paper", "server.port=null", *own]
    output = base / "generator"
    with started("generate", output, *arguments, ended_by=signal.SIGTERM) as process:
        while not (found := re.search(r"generator\.endpoints=\[(.+?)\]", output.read_text())):
            assert process.poll() is None, output.read_text()
            time.sleep(0.5)
        yield found[1]


def questions_of_step(overrides: list[str], folder: Path, step: int) -> list[str]:
    """The uids of a run that nobody has killed."""
    data = hydra.utils.instantiate(compose_config(folder, *overrides).data)
    data.setup("fit")
    batch = next(itertools.islice(iter(data.train_dataloader()), step, None))
    return [question.uid for question in batch]


def episodes(run: Path, phase: str, step: int) -> list[dict[str, Any]]:
    """Of all ranks."""
    files = (run / "transcripts" / phase).glob(f"step_{step:06d}*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_the_page_lists_what_is_overridden() -> None:
    rows = PAGE.read_text().partition(SECTION)[2].partition("\n## ")[0].split("\n|")[3:]
    listed = {}
    for kind, told, runs in (row.split("|")[:3] for row in rows):
        assert kind.strip() in ("sizes", "devices", "paths", "")
        names = re.findall("`(.+?)`", runs)
        names = [name for name in RUNS if name not in names] if "all" in runs else names
        listed |= dict.fromkeys(re.findall("`(.+?)`", told), names)
    assert listed == OVERRIDDEN


def test_what_every_rank_says_of_itself_is_not_shown() -> None:
    quiet_libraries()
    logger = logging.getLogger("lightning.fabric.utilities.distributed")
    assert not logger.isEnabledFor(logging.INFO), "Initializing distributed, once for each rank"
    while logger.parent is not None:
        assert not logger.handlers, f"{logger.name} says again what Hydra's handlers say"
        logger = logger.parent


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
@pytest.mark.parametrize("name", RUNS)
def test_it_trains_is_killed_and_goes_on(name: str, tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, f"experiment={name}")
    published = dict(cfg.model.architecture)
    save_published_policy(tmp_path / "policy", published)
    write_published_rows(tmp_path / "data" / "nq_hotpotqa", train=64, test=HELD_OUT)
    latest = tmp_path / "logs" / "train" / "latest"
    places = {each.upper(): str(tmp_path / each) for each in ("policy", "data", "logs")}
    simulator = Simulator(latest / "checkpoints" / "last.ckpt")
    with ExitStack() as stack:
        server = OpenAIServer(simulator.answer, models=[cfg.simulator.model])
        places["SIMULATOR"] = stack.enter_context(server).url
        if "endpoints" in cfg.generator:
            told = overrides(name, places | {"GENERATOR": ""})
            model = cfg.made_for.experiment.model
            places["GENERATOR"] = stack.enter_context(serving(model, told, tmp_path))
        given = [f"experiment={name}", *overrides(name, places)]
        with training(tmp_path, "first", *given) as process:
            while not simulator.held.wait(0.1):
                assert process.poll() is None, (tmp_path / "first").read_text()
        simulator.killed.set()
        run = latest.resolve()
        before = read_metrics(run)
        assert read_summary(run)["status"] == "running"
        with training(tmp_path, "second", f"resume={run}") as process:
            code = process.wait(TIMEOUT_S)
    said = (tmp_path / "second").read_text()
    assert code == 0 and f"Continuing from {run}/checkpoints/last.ckpt" in said, said

    summary = read_summary(run)
    assert summary["status"] == "completed"
    assert {"start/f1", "test/f1"} <= summary.keys()
    assert (run / "checkpoints" / "last.ckpt").resolve().name == "step_000002.ckpt"
    check_rows(cfg, before, read_metrics(run))
    check_episodes(run, questions_of_step(given, tmp_path, 1))
    check_export(run, tmp_path / "policy")


def check_rows(cfg: DictConfig, before: list[dict[str, str]], rows: list[dict[str, str]]) -> None:
    """One row for each step: that from before the kill stands, and the second one follows it."""
    assert [row["step"] for row in rows] == ["0", "1"]
    assert {k: v for k, v in rows[0].items() if v} == {k: v for k, v in before[0].items() if v}
    schedule = [noise_probability(i, 2, cfg.curriculum.start, cfg.curriculum.end) for i in (0, 1)]
    assert [float(row["curriculum/noise_probability"]) for row in rows] == schedule
    rates = [float(row["optimizer/learning_rate"]) for row in rows]
    assert 0 < rates[0] < rates[1] == cfg.optimizer.lr, "the warm-up goes on"
    for row in rows:
        assert float(row["rollout/valid"]) == 1.0 and float(row["rollout/searches"]) > 0
        assert float(row["rollout/logprob_gap"]) < 0.02
        assert float(row["optimizer/gradient_norm"]) > 0
        assert float(row["val/train_engine/count"]) == HELD_OUT
    if cfg.rollout.lag:  # the checkpoint holds what was sampled ahead: it is trained on once more
        shown = [{k: v for k, v in computed(row).items() if v} for row in (before[1], rows[1])]
        assert shown[0] == {k: shown[1][k] for k in shown[0]}


def check_episodes(run: Path, second: list[str]) -> None:
    """The resumed step asks what it would have asked without the kill, and all is written once."""
    asked = Counter(each["uid"] for each in episodes(run, "train", 1))
    assert asked == dict.fromkeys(second, SIBLINGS)
    assert not asked.keys() & {each["uid"] for each in episodes(run, "train", 0)}
    for step in (1, 2):
        answered = [each["uid"] for each in episodes(run, "val/train_engine", step)]
        assert len(answered) == len(set(answered)) == HELD_OUT


def check_export(run: Path, published: Path) -> None:
    """A whole policy of the published form, moved by no more than two steps can."""
    exported, started_from = (
        load_file(folder / "model.safetensors") for folder in (run / "policy", published)
    )
    assert exported.keys() == started_from.keys()
    moved = [
        (exported[name].float() - weight.float()).abs().max()
        for name, weight in started_from.items()
    ]
    assert 0 < max(moved) < 0.01
