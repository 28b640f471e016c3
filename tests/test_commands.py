"""What is wrong with a command line is said in one sentence, before anything heavy is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.openai_server import free_port
from zerosearch.commands import nearest

HEAVY = ("torch", "lightning", "transformers", "datasets")


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which importing a heavy library is an error."""
    folder = tmp_path_factory.mktemp("light")
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise AssertionError('{name} is imported')\n")
    return os.environ | {"PYTHONPATH": f"{folder}:{ROOT / 'src'}"}


def refused(program: str, *arguments: str, env: dict[str, str], logs: Path) -> str:
    """What a command says that ends with the exit code of errors."""
    command = [sys.executable, "-m", f"zerosearch.{program}", *arguments]
    done = subprocess.run(
        [*command, f"paths.log_dir='{logs}'"],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode == (2 if program == "ask" else 1), said
    assert "Traceback" not in said and "HYDRA_FULL_ERROR" not in said
    assert " is imported" not in said
    return said


@pytest.mark.parametrize(
    ("program", "word", "sentence"),
    [
        ("train", "policy_steps=four", "policy_steps=four: give a whole number, 1 or more"),
        ("train", "policy_steps=2.5", "policy_steps=2.5: give a whole number, 1 or more"),
        ("train", "policy_steps=0", "policy_steps=0: give a whole number, 1 or more"),
        ("train", "questions_per_step=true", "questions_per_step=true: give a whole number"),
        ("train", "seed=abc", "seed=abc: give a whole number from 0"),
        ("train", "seed=-1", "seed=-1: give a whole number from 0"),
        ("train", "test=maybe", "test=maybe: give true or false"),
        ("train", "tags=word", "tags=word: give a list of words"),
        (
            "train",
            "policy_step=4",
            "policy_step: train has no such key; did you mean policy_steps?",
        ),
        ("train", "lr=1", "lr: train has no such key; did you mean optimizer.lr?"),
        ("train", "simulater=tiny", "did you mean simulator?"),
        ("train", "experiment=quikstart", "did you mean experiment=quickstart?"),
        ("train", "model=gpt", "model=gpt: there is no model/gpt; model has"),
        ("train", "search.engine.splits=null", "did you mean simulator.engine.splits"),
        ("train", "tags=[a", "tags=[a: no viable alternative"),
        ("train", "resume=nowhere", "resume=nowhere is neither a checkpoint file nor a run folder"),
        ("train", "simulator=no/such", "simulator=no/such is no folder of a tuned simulator"),
        ("evaluate", "limit=half", "limit=half: give a whole number, 1 or more, or null for all"),
        ("evaluate", "max_failed_share=2", "max_failed_share=2: give a number from 0 to 1"),
        ("ask", "temperature=-1", "temperature=-1: give a number, 0 or more"),
        ("ask", "allow_other_episode=perhaps", "allow_other_episode=perhaps: give true or false"),
        ("serve_policy", "port=http", "port=http: give a port from 0"),
        ("retriever", "port=70000", "port=70000: give a port from 0"),
        ("simulator.collect", "attempts=0", "attempts=0: give a whole number, 1 or more"),
        ("simulator.judge", "only_correct=1", "only_correct=1: give true or false"),
        ("simulator.fidelity", "timeout_s=soon", "timeout_s=soon: give seconds, more than 0"),
        ("data.fetch", "name=wiki81", "name=wiki81: choose one of nq_hotpotqa"),
        ("data.fetch", "nmae=wiki18", "nmae: fetch has no such key; did you mean name?"),
        ("policy.memory", "gpu_gib=-80", "gpu_gib=-80: give a number above 0"),
    ],
)
def test_a_wrong_word_is_one_sentence(
    program: str, word: str, sentence: str, light: dict[str, str], tmp_path: Path
) -> None:
    assert sentence in refused(program, word, env=light, logs=tmp_path)


NOBODY = "nobody asks the simulator"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["simulator=prompted_3b"],
            "simulator.endpoints is empty: start a server with `make simul",
        ),
        (["simulator=prompted_3b"], "endpoints.prompted_3b=[URL]"),
        (["simulator=prompted_3b", "search=scripted"], NOBODY),
        (["simulator=prompted_3b", "search=bm25"], NOBODY),
        (["simulator.reliability=0.5", "search=bm25"], NOBODY),
        (["endpoints.prompted_3b=[http://h/v1]", "search=bm25"], NOBODY),
        (
            ["simulator=tuned_3b", "simulator.launch=true"],
            "zerosearch.simulator.template sunhaonlp/",
        ),
        (["simulator=tiny_tuned"], "`make simulator-quickstart` makes it"),
        (["simulator=llm", "simulator.model=m", "simulator.prompt_template=no.j2"], "'no.j2'"),
        (["simulator=prompted_3b", "simulator.endpoints=[here]"], "here (no URL: give http://"),
        (["experiment=zerosearch_7b"], "simulator.endpoints is empty"),
        (["experiment=search_r1_7b", "simulator=prompted_7b"], NOBODY),
        (["experiment=r1_7b", "search=simulated"], "none is chosen: add simulator=NAME"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_simulator_that_cannot_play_is_refused(
    words: list[str], sentence: str, light: dict[str, str], tmp_path: Path
) -> None:
    assert sentence in refused("train", *words, env=light, logs=tmp_path)


def test_a_simulator_that_is_not_there_is_refused(light: dict[str, str], tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    for words in (
        [f"endpoints.prompted_7b=[{url}]", "simulator=prompted_7b"],
        [f"simulator.endpoints=[{url}]", "experiment=zerosearch_7b"],
    ):
        said = refused("train", *words, env=light, logs=tmp_path)
        assert f"no simulator answers at {url}" in said
        assert "make simulator simulator=prompted_7b" in said


def test_a_refused_run_says_so_in_its_summary(light: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused("train", "seed=x", f"hydra.run.dir='{run}'", env=light, logs=tmp_path)
    facts = json.loads((run / "summary.json").read_text())
    assert facts["status"] == "failed" and facts["error"].startswith("ValueError: seed=x: give")


def test_every_job_of_a_sweep_runs_and_every_failure_has_its_line(
    light: dict[str, str], tmp_path: Path
) -> None:
    sizes = "simulator=prompted_3b,prompted_7b,prompted_14b"
    said = refused("train", "-m", sizes, env=light, logs=tmp_path)
    assert "jobs that failed: 3" in said
    last = said.partition("jobs that failed")[2]
    for number, size in enumerate(("3b", "7b", "14b")):
        assert f"job {number} (simulator=prompted_{size}): ValueError: simulator.endpoints" in last
        assert f"endpoints.prompted_{size}=[URL]" in last


def test_the_sweep_over_sizes_is_one_command(light: dict[str, str], tmp_path: Path) -> None:
    said = refused("train", "hparams_search=simulator_size", env=light, logs=tmp_path)
    names = [f"{kind}_{size}" for size in ("3b", "7b", "14b") for kind in ("prompted", "tuned")]
    last = said.partition("jobs that failed: 6")[2]
    for name in names:
        assert f"simulator={name}" in last
    assert last.count("simulation_google.j2 is not there") == 3, "tuned ones need their template"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("policy_step", ["policy_steps"]),
        ("algorithm.kl_coeficient", ["algorithm.kl_coefficient"]),
        ("kl_coefficient", ["algorithm.kl_coefficient"]),
        ("zzz", []),
    ],
)
def test_the_nearest_key(name: str, meant: list[str]) -> None:
    known = ["policy_steps", "seed", "algorithm", "algorithm.kl_coefficient", "optimizer.lr"]
    assert nearest(name, known) == meant
