"""Whole runs of `zerosearch train`: what they leave, how they resume, how they refuse."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import (
    parse_experiment_plugin_data,
    parse_session_start_info_plugin_data,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers import pausing_simulator as pausing
from tests.helpers.configs import ROOT, compose_config
from tests.helpers.openai_server import free_port
from tests.helpers.processes import Forked
from tests.helpers.runs import STEPS, computed, read_metrics, small_run
from tests.helpers.waiting import guarded
from zerosearch.assembly import assemble
from zerosearch.commands.train import train
from zerosearch.core.endings import report_error
from zerosearch.core.runs import Summary, exit_code
from zerosearch.data.geography.facts import load_facts
from zerosearch.policy.export import load_settings
from zerosearch.policy.source import PolicySource
from zerosearch.search.cache import CachedSearch
from zerosearch.simulator.scripted import ScriptedSimulator
from zerosearch.training.preflight import check_run
from zerosearch.types import SearchError, SearchRequest

PAUSING = f"simulator.engine._target_={pausing.__name__}.PausingSimulator"
TIMEOUT_S = 600  # of a process; about 15 on a machine that has nothing else to do


# -- runs in processes of their own ---------------------------------------------------------------


def start(
    *arguments: str, pause: tuple[Path, int] | None = None, threads: int = 1
) -> subprocess.Popen[str] | Forked:
    """The command, in the checkout; with `pause` it halts in that folder after so many steps.

    Those that are to be stopped are forked; their metrics are compared with a new process's.
    """
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    if pause is not None:
        folder, steps = pause
        (folder / pausing.PAUSED).unlink(missing_ok=True)
        (folder / pausing.GO_ON).unlink(missing_ok=True)
        environment |= {pausing.FOLDER: str(folder), pausing.STEPS: str(steps)}
        return Forked("train", *arguments, env=environment)
    return subprocess.Popen(
        [sys.executable, "-m", "zerosearch", "train", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until_paused(process: subprocess.Popen[str] | Forked, folder: Path) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not (folder / pausing.PAUSED).exists():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            raise AssertionError(f"never came to the pause:\n{process.communicate()[0]}")
        time.sleep(0.02)


def finish(process: subprocess.Popen[str] | Forked) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.wait(), output


def read_summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def saved_steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@dataclass(kw_only=True, slots=True)
class Runs:
    """One run that was left alone, and one that was stopped twice; both of the same settings."""

    logs: Path
    whole: Path
    output: str
    broken: Path
    stops: list[dict[str, Any]]  # exit code, checkpoints, steps and status after each stop


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Stop one run by SIGTERM in its third step, then by SIGKILL in its sixth."""
    base = tmp_path_factory.mktemp("runs")
    settings = [*small_run(base), PAUSING]
    whole, broken = base / "whole" / "train" / "runs" / "a", base / "broken"
    uninterrupted = start(
        *settings, f"paths.log_dir={base / 'whole'}", f"hydra.run.dir={whole}", "seed=0"
    )
    broken.mkdir()
    try:
        stops = stop_twice(settings, base / "logs", broken)
        code, output = finish(uninterrupted)
    finally:
        uninterrupted.kill()
    assert code == 0, output
    return Runs(logs=base / "whole", whole=whole, output=output, broken=broken, stops=stops)


def stop_twice(settings: list[str], logs: Path, folder: Path) -> list[dict[str, Any]]:
    """Run to the end with two stops; returns what was there after each of them."""
    stops = []

    def note(code: int) -> None:
        rows = len((folder / "metrics.csv").read_text().splitlines()) - 1
        status = read_summary(folder)["status"] if (folder / "summary.json").exists() else None
        stops.append({"code": code, "saved": saved_steps(folder), "steps": rows, "status": status})

    place = [f"paths.log_dir={logs}", f"hydra.run.dir={folder}", "seed=0"]
    process = start(*settings, *place, pause=(folder, 2))
    wait_until_paused(process, folder)
    process.send_signal(signal.SIGTERM)
    (folder / pausing.GO_ON).touch()
    note(finish(process)[0])
    (folder / "summary.json").unlink()

    process = start(f"resume={folder}", pause=(folder, 5))
    wait_until_paused(process, folder)
    process.kill()
    note(finish(process)[0])

    code, output = finish(start("resume=latest", f"paths.log_dir={logs}", threads=2))
    assert code == 0, output
    assert "threads: 1, as the checkpoint was computed with (torch's choice here: 2)" in output
    return stops


def test_a_run_leaves_its_summary(runs: Runs) -> None:
    summary = read_summary(runs.whole)
    assert summary["status"] == "completed" and summary["seed"] == 0
    assert 0 < summary["seconds"] < TIMEOUT_S
    assert "-m zerosearch train" in summary["command"] and "seed=0" in summary["command"]
    assert summary["git_commit"] is None or len(summary["git_commit"].split("+")[0]) == 40
    for name in ("start/f1", "test/f1", "start/em", "test/em", "reward/f1", "test/scripted/f1"):
        assert 0.0 <= summary[name] <= 1.0, name
    assert summary["test/f1"] == summary["test/bm25/f1"]
    assert summary["test/bm25/count"] == 5, "the last, uneven batch included"
    assert {"test/bm25/hops_1/f1", "test/bm25/hops_2/f1"} <= summary.keys()


def test_a_run_leaves_one_row_of_metrics_per_step(runs: Runs) -> None:
    rows = read_metrics(runs.whole)
    assert [row["step"] for row in rows] == [str(step) for step in range(STEPS)]
    assert all(float(row["reward/f1"]) >= 0 for row in rows)
    validated = [row["step"] for row in rows if row["val/bm25/f1"]]
    assert validated == ["1", "3", "5"], "after every second step"
    noise = [float(row["curriculum/noise_probability"]) for row in rows]
    assert noise == sorted(noise) and noise[0] == 0 and noise[-1] > 0
    assert sum(float(row["rollout/searches"]) for row in rows) > 0


def test_a_run_leaves_everything_else_in_its_folder(runs: Runs) -> None:
    latest = runs.logs / "train" / "latest"
    assert latest.is_symlink() and latest.resolve() == runs.whole.resolve()
    assert saved_steps(runs.whole) == ["last.ckpt", "step_000006.ckpt"]
    transcripts = {
        str(path.relative_to(runs.whole / "transcripts"))
        for path in (runs.whole / "transcripts").rglob("*.jsonl")
    }
    phases = {
        f"{phase}/{engine}/step_{step:06d}.jsonl"
        for phase, steps in (("start", [0]), ("val", [2, 4, 6]), ("test", [6]))
        for engine in ("bm25", "scripted")
        for step in steps
    }
    assert transcripts == phases | {f"train/step_{n:06d}.jsonl" for n in range(STEPS)}
    assert (runs.whole / ".hydra" / "overrides.yaml").is_file()
    assert "zerosearch" in (runs.whole / "train.log").read_text()
    assert "Traceback" not in runs.output and "Warning" not in runs.output


def test_a_run_leaves_a_policy_that_others_can_load(runs: Runs) -> None:
    policy = AutoModelForCausalLM.from_pretrained(runs.whole / "policy")
    tokenizer = AutoTokenizer.from_pretrained(runs.whole / "policy")
    ids = tokenizer("Question: colour 3", return_tensors="pt").input_ids
    assert policy(ids).logits.isfinite().all()
    assert load_settings(runs.whole / "policy")["episode"]["max_turns"] == 2
    first = AutoTokenizer.from_pretrained(runs.logs.parent / "tiny")
    assert first.pad_token_id is None, "a tokenizer without a pad token was trained with"
    saved = torch.load(runs.whole / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, saved[f"model.{name}"]), name


def test_a_run_leaves_curves_hyper_parameters_and_texts_for_tensorboard(runs: Runs) -> None:
    board = EventAccumulator(str(runs.whole / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    curves = {name: board.Scalars(name) for name in tags["scalars"]}
    assert {"reward/f1", "loss/policy", "val/bm25/f1"} <= curves.keys() and len(curves) <= 120
    for name, events in curves.items():
        assert len(events) > 1, name
        assert any(event.value for event in events) or name.endswith("_low"), name
        assert not name.startswith(("start/", "test/")), name
    rewards = [float(row["reward/f1"]) for row in read_metrics(runs.whole)]
    assert {event.step for event in board.Scalars("reward/f1")} == set(range(STEPS))
    for event in board.Scalars("reward/f1"):
        assert event.value == pytest.approx(rewards[event.step])
    texts = {"transcripts/val/bm25", "results/bm25", "results/scripted"}
    assert {f"{name}/text_summary" for name in texts} <= set(tags["tensors"])
    assert {*tags["histograms"]} == {"episodes/turns", "episodes/tokens", "episodes/reward"}
    row = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = parse_session_start_info_plugin_data(row).hparams
    summary = read_summary(runs.whole)
    assert values["test/f1"].number_value == round(summary["test/f1"], 4)
    assert values["experiment"].string_value == "quickstart" and "more" in values
    columns = board.SummaryMetadata("_hparams_/experiment").plugin_data.content
    found = parse_experiment_plugin_data(columns)
    assert len(found.hparam_infos) + len(found.metric_infos) <= 15
    assert "None" not in {value.string_value for value in values.values()}


def test_invariant_13_curves_of_a_run_stopped_twice_are_those_of_one_left_alone(
    runs: Runs,
) -> None:
    def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
        board = EventAccumulator(str(run / "tensorboard")).Reload()
        names = computed(dict.fromkeys(board.Tags()["scalars"], ""))
        return {name: [(e.step, e.value) for e in board.Scalars(name)] for name in names}

    assert curves(runs.broken) == curves(runs.whole)


def test_a_run_is_linked_once_for_tensorboard(runs: Runs) -> None:
    (link,) = (runs.logs / "tensorboard" / "train").iterdir()
    assert link.name.startswith("quickstart made_for=null")
    assert link.resolve() == (runs.whole / "tensorboard").resolve()


def test_sigterm_ends_a_run_after_the_step_with_a_checkpoint(runs: Runs) -> None:
    stop = runs.stops[0]
    assert stop["code"] == 143 and stop["status"] == "interrupted by SIGTERM"
    # the checkpoint of step 2 stays until a next step has shown how good the policy of step 3 is
    assert stop["steps"] == 3
    assert stop["saved"] == ["healthy.ckpt", "last.ckpt", "step_000003.ckpt"]


def test_sigkill_leaves_the_last_whole_checkpoint(runs: Runs) -> None:
    stop = runs.stops[1]
    assert stop["code"] == -signal.SIGKILL and stop["status"] == "running"
    assert (stop["steps"], stop["saved"]) == (5, ["last.ckpt", "step_000004.ckpt"])


def test_invariant_13_a_run_stopped_twice_equals_one_left_alone_bit_for_bit(runs: Runs) -> None:
    assert read_summary(runs.broken)["status"] == "completed"
    found, expected = read_metrics(runs.broken), read_metrics(runs.whole)
    assert [list(row) for row in found] == [list(row) for row in expected]
    assert len(computed(expected[0])) > 40
    for row, whole in zip(found, expected, strict=True):
        assert computed(row) == computed(whole)
    weights = [
        (run / "policy" / "model.safetensors").read_bytes() for run in (runs.broken, runs.whole)
    ]
    assert weights[0] == weights[1]
    start_weights = runs.logs.parent / "tiny" / "model.safetensors"
    assert weights[0] != start_weights.read_bytes(), "and it has learned"


def test_invariant_13_transcripts_and_final_metrics_are_those_of_one_left_alone(runs: Runs) -> None:
    def turns(run: Path) -> dict[str, list[Any]]:
        found = {}
        for path in sorted((run / "transcripts").rglob("*.jsonl")):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            texts = [[turn["text"] for turn in line["turns"]] for line in lines]
            rewards = [line.get("reward") for line in lines]
            found[str(path.relative_to(run))] = [texts, rewards]
        return found

    assert turns(runs.broken) == turns(runs.whole)
    one, other = read_summary(runs.broken), read_summary(runs.whole)
    assert one.keys() == other.keys()
    same = [k for k in one if k.startswith(("start/", "test/")) and "latency" not in k]
    assert len(same) > 40 and all(one[key] == other[key] for key in same)


# -- the command line -----------------------------------------------------------------------------


def test_help_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "zerosearch", "train", "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in loaded
    assert not loaded & {"torch", "lightning", "transformers", "datasets", "numpy"}
    assert "experiment=quickstart " in done.stdout and "zerosearch_7b" in done.stdout


def test_a_run_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    arguments = [
        "experiment=zerosearch_7b",
        "generator=transformers",
        "trainer=cpu",
        *("model=quickstart", "data=geography", "made_for=null"),  # which are there
        f"paths.log_dir={tmp_path}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    code, output = finish(start(*arguments))
    assert code == 1
    [line] = [each for each in output.strip().splitlines() if "planned for the" not in each]
    assert "simulator.endpoints" in line and "ERROR" in line
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "failed" and "simulator.endpoints" in summary["error"]
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {".hydra", "summary.json", "train.log"}
    assert not (tmp_path / "train").exists(), "latest stays with a run that has begun"


def test_a_run_that_is_nowhere_cannot_be_resumed(tmp_path: Path) -> None:
    code, output = finish(start(f"resume={tmp_path / 'nowhere'}"))
    assert code == 1
    [line] = output.strip().splitlines()
    assert "is neither a checkpoint file nor a run folder" in line


# -- bad input, in this process -------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a small run; what a run sets for its process is undone."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    return small_run(tmp_path)


def refuse(folder: Path, caplog: pytest.LogCaptureFixture, *overrides: str) -> str:
    """Run until the error; returns the one line the user sees."""
    run_folder = folder / "run"
    run_folder.mkdir()
    with guarded(), pytest.raises(Exception) as error:
        train(compose_config(run_folder, *overrides), Summary(run_folder))
    assert not isinstance(error.value, HydraException) or error.value.__cause__ is not None
    caplog.clear()
    with caplog.at_level(logging.ERROR, logger="zerosearch"):
        report_error(error.value)  # type: ignore[arg-type]
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is None, "a traceback would hide the sentence"
    assert "\n" not in record.getMessage()
    assert not {"checkpoints", "policy"} & {path.name for path in run_folder.iterdir()}
    return record.getMessage()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"q": "colour?"}, r"no question: fields 'question' and 'prompt'"),
        ({"question": " ", "golden_answers": ["red"]}, "an empty question"),
        ({"question": "colour?"}, "no golden answers"),
        ({"question": "colour?", "golden_answers": ["", " "]}, "no golden answer"),
    ],
)
def test_bad_rows_are_named_before_anything_is_computed(
    row: dict[str, Any],
    message: str,
    settings: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = tmp_path / "bad.jsonl"
    good = {"question": "colour?", "golden_answers": ["red"]}
    bad.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    said = refuse(tmp_path, caplog, *settings, f"data.files=[{bad}]")
    assert message in said and "bad.jsonl" in said and "2" in said
    assert not (tmp_path / "run" / "transcripts").exists(), "not even the start was evaluated"


def test_a_corrupt_parquet_file(
    settings: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1" + bytes(64))
    assert "bad.parquet" in refuse(tmp_path, caplog, *settings, f"data.files=[{bad}]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.files=[no_such.jsonl]"], "no_such.jsonl"),
        (["data.validation.own.path=no_such.parquet"], "no_such.parquet"),
        (["data.files=???"], "data.files"),
        (["episode.max_prompt_tokens=2"], "episode.max_prompt_tokens=2"),
        (["episode.max_context_tokens=9000"], "episode.max_context_tokens=9000"),
        (["episode.prompt_template=no_such"], "episode.prompt_template='no_such'"),
        (["model.chat=true"], "model.chat=true, but the tokenizer has no chat template"),
        (["model.path=no/such/folder"], "model.path=no/such/folder"),
        (["search=bm25", "search.engine.corpus=no_such.jsonl"], "no_such.jsonl"),
        (["simulator.reliability=2"], "simulator.reliability=2"),
        (["simulator.failure_rate=1"], "module.max_failed_share=0.1"),
        (["algorithm.advantage.scale=no_such"], "algorithm.advantage.scale=no_such: give 'std'"),
        (["~curriculum"], "callbacks.curriculum has no _target_: choose a curriculum="),
        (["curriculum.end=1.5"], "curriculum.end=1.5: give at most 1"),
        (["optimizer.lr=-1"], "optimizer.lr=-1: give at least 0"),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true: weights that are trained"),
        (["resume=no_such_run"], "resume=no_such_run"),
    ],
    ids=lambda part: part[-1] if isinstance(part, list) else "",
)
def test_bad_settings_are_one_clear_sentence(
    overrides: list[str],
    message: str,
    settings: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert message in refuse(tmp_path, caplog, *settings, *overrides)


LACKING = {
    "endpoints": (
        ["simulator=llm", "simulator.model=m"],
        "simulator.endpoints is empty: start a server",
    ),
    "retriever key": (
        ["search=retriever", "search.engine.api_key_env=NO_SUCH_KEY"],
        "search.engine.api_key_env=NO_SUCH_KEY: the environment variable is not set",
    ),
    "serper key": (
        ["search=web", "search.cache=none"],
        "search.engine.provider=serper needs a key from https://serper.dev",
    ),
    "serpapi key": (
        ["search=web", "search.cache=none", "search.engine.provider=serpapi"],
        "search.engine.provider=serpapi needs a key from https://serpapi.com",
    ),
}


@pytest.fixture
def without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPER_API_KEY", "SERPAPI_API_KEY", "NO_SUCH_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("without_keys")
@pytest.mark.parametrize("lacking", LACKING)
def test_what_an_engine_lacks_is_said_before_the_policy_is_loaded(
    lacking: str,
    settings: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(_: PolicySource) -> None:
        pytest.fail("the policy is loaded")

    monkeypatch.setattr(PolicySource, "load_model", load)
    overrides, message = LACKING[lacking]
    assert message in refuse(tmp_path, caplog, *settings, *overrides)


@pytest.mark.usefixtures("without_keys")
@pytest.mark.parametrize("lacking", LACKING)
def test_a_replay_needs_nothing_that_an_engine_lacks(
    lacking: str, settings: list[str], tmp_path: Path
) -> None:
    overrides, _ = LACKING[lacking]
    kept = CachedSearch(ScriptedSimulator(load_facts()), tmp_path / "searches", replay=False)
    request = SearchRequest(query="where", question="colour 0", golden_answers=("red",))
    replay = ["search.cache=replay", f"search.cache_folder={tmp_path / 'searches'}"]
    cfg = compose_config(tmp_path, *settings, *overrides, *replay, "evaluation=same_engine")
    module = assemble(cfg).module
    asyncio.run(kept.search(request))
    check_run(module)
    for engine in (module.search, module.evaluations["train_engine"].search):
        with pytest.raises(SearchError, match="no answer to the query 'where' was recorded"):
            asyncio.run(engine.search(request))


def test_a_step_that_cannot_be_shared_by_the_processes(
    settings: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    processes = ["trainer.devices=3", "trainer.num_nodes=2", "trainer.strategy=ddp"]
    said = refuse(tmp_path, caplog, *settings, *processes, "questions_per_step=8")
    assert "questions_per_step=8 is not a positive multiple of the 6 processes" in said
    assert "use 6 or 12" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to train on")
@pytest.mark.parametrize("overrides", [["trainer=gpu"], ["experiment=zerosearch_7b"]])
def test_a_gpu_that_is_missing(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = refuse(tmp_path, caplog, *overrides)
    assert "trainer.accelerator=gpu, but no CUDA GPU" in said and "trainer=cpu" in said
    assert not list((tmp_path / "run").iterdir()), "nothing was begun"


def test_the_weights_of_a_model_of_the_hub_are_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refuse(tmp_path, caplog, "experiment=any_model", "model=qwen2_5_0_5b", "trainer=cpu")
    assert "model.path=Qwen/Qwen2.5-0.5B is neither a folder nor in the local hub cache" in said


def test_the_simulator_of_the_paper_run_is_missing(
    settings: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paper = ["experiment=zerosearch_7b", "model=quickstart", "trainer=cpu"]
    paper += ["generator=transformers"]
    tiny = [item for item in settings if item.startswith("model.")]
    url = f"http://127.0.0.1:{free_port()}/v1"
    said = refuse(tmp_path, caplog, *paper, *tiny, f"simulator.endpoints=[{url}]")
    assert url in said and "vllm serve Qwen/Qwen2.5-7B-Instruct" in said


# -- signals outside of training ------------------------------------------------------------------


@pytest.fixture
def ignored_sigterm() -> Iterator[None]:
    """Keeps the test process alive should nothing else handle the signal."""
    earlier = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, earlier)


@pytest.mark.usefixtures("ignored_sigterm")
@pytest.mark.parametrize("batch", [2, 8])
def test_sigterm_during_the_first_evaluation_ends_the_run(
    batch: int, settings: list[str], tmp_path: Path
) -> None:
    class Terminated:
        """Notes what was asked for after the signal."""

        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, *_: Any, **__: Any) -> None:
            self.calls += 1
            if self.calls == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    from zerosearch.training.evaluation import EvaluationRun

    terminated = Terminated()
    answer = EvaluationRun.answer

    def answered(self: EvaluationRun, *arguments: Any) -> None:
        terminated()
        answer(self, *arguments)

    summary = Summary(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvaluationRun, "answer", answered)
        train(compose_config(tmp_path, *settings, f"data.validation_batch={batch}"), summary)
    assert terminated.calls == 1
    assert summary.facts["status"] == "interrupted by SIGTERM"
    assert exit_code(summary.facts["status"]) == 143
    assert not (tmp_path / "checkpoints").exists()


def test_seed_zero_is_a_seed(settings: list[str], tmp_path: Path) -> None:
    def first_step(seed: int) -> list[str]:
        folder = tmp_path / f"seed-{seed}-{time.monotonic_ns()}"
        short = ["policy_steps=1", "test=false", "trainer.val_check_interval=1", f"seed={seed}"]
        train(compose_config(folder, *settings, *short, "data.validation_limit=1"), Summary(folder))
        assert torch.initial_seed() == seed
        lines = (folder / "transcripts" / "train" / "step_000000.jsonl").read_text().splitlines()
        texts = [turn["text"] for line in lines for turn in json.loads(line)["turns"]]
        shutil.rmtree(folder)
        return texts

    assert first_step(0) == first_step(0) != first_step(1)
