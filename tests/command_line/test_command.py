"""What is wrong with a command line is said in one sentence, before anything heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tests.helpers.commands import composed, light_environment, refusal
from tests.helpers.configs import ROOT
from tests.helpers.openai_server import free_port
from zerosearch.command_line.error_text import nearest


def said_here(program: str, words: list[str], folder: Path) -> str:
    """What a command says to its words, in this process."""
    try:
        [job] = composed(program, words, folder)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return import_module(f"zerosearch.commands.{program}").main.explain(error, words)
    return refusal(job) or ""


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return light_environment(tmp_path_factory.mktemp("light"))


def ended(
    program: str, *arguments: str, env: dict[str, str], logs: Path
) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "zerosearch", program, *arguments]
    return subprocess.run(
        [*command, f"paths.log_dir='{logs}'"],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def refused(program: str, *arguments: str, env: dict[str, str], logs: Path) -> str:
    """What a command says that ends with the exit code of errors."""
    done = ended(program, *arguments, env=env, logs=logs)
    assert done.returncode == (2 if program == "ask" else 1), done.stdout
    assert "Traceback" not in done.stdout and "HYDRA_FULL_ERROR" not in done.stdout
    assert " is imported" not in done.stdout
    return done.stdout


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
            "policy_step: zerosearch train has no such key; did you mean policy_steps?",
        ),
        ("train", "lr=1", "lr: zerosearch train has no such key; did you mean optimizer.lr?"),
        ("train", "simulater=tiny", "did you mean simulator?"),
        ("train", "experiment=quikstart", "did you mean experiment=quickstart?"),
        ("train", "model=gpt", "model=gpt: there is no model/gpt; model has"),
        ("train", "search.engine.splits=null", "did you mean simulator.engine.splits"),
        (
            "train",
            "model=a/b",
            "model=a/b: there is no model/a/b; did you mean model=hf model.path",
        ),
        ("train", "reward=f1", "reward: zerosearch train has no such key; did you mean rubric?"),
        ("train", "--seed=1", "--seed=1: there is no such flag; keys are given as seed=1"),
        ("train", "--seed", "--seed: there is no such flag; keys are given as seed=VALUE"),
        ("data", "folder=here", "name is not set: choose one of nq_hotpotqa"),
        ("train", "tags=[a", "tags=[a: no viable alternative"),
        ("train", "policy_steps", "policy_steps: settings are given as key=value"),
        (
            "train",
            "+policy_steps=3",
            "policy_steps: zerosearch train has this key: leave the + out",
        ),
        ("train", "~loger", "loger: zerosearch train has no such key; did you mean logger?"),
        ("train", "logger={a: 1}", "logger: give one of its choices, or its keys one by one"),
        ("train", "seed=0,1", "seed=[0,1], and a run for each with -m (zerosearch train -m)"),
        ("train", "algorithm=null", "give a choice of its group, or a node with _target_"),
        ("train", "rubric=null", "is not there: choose another rubric="),
        ("train", "endpoints=[http://h/v1]", "; keys are set as endpoints.KEY=value"),
        ("tune", "data=hotpotqa_small", "data=hotpotqa_small is not for zerosearch tune: it choo"),
        ("evaluate", "engines=null", "engines: give one of its choices"),
        ("ask", "question=who", "question: zerosearch ask has no such key; `--cfg job` shows"),
        ("train", "resume=nowhere", "resume=nowhere is neither a checkpoint file nor a run folder"),
        ("train", "simulator=no/such", "simulator=no/such is no folder of a tuned simulator"),
        ("train", "hydra/sweeper=optuna", "hydra/sweeper=optuna: there is no hydra/sweeper/optuna"),
        ("train", "search=cached", "search=cached is what all engines share and names none"),
        ("retrieve", "search=cached", "search=cached is what all engines share and names none"),
        ("train", "made_for=none", "made_for=none: give null to take choices as they are"),
        (
            "tune",
            "experiment=simulator_sft_tiny",
            "train.jsonl does not exist: `make simulator-quickstart` makes it",
        ),
        ("train", "data=files", "set simulator=prompted_7b or another language model"),
        ("evaluate", "limit=half", "limit=half: give a whole number, 1 or more, or null for all"),
        ("evaluate", "max_failed_share=2", "max_failed_share=2: give a number from 0 to 1"),
        ("ask", "temperature=-1", "temperature=-1: give a number, 0 or more"),
        ("ask", "allow_other_episode=perhaps", "allow_other_episode=perhaps: give true or false"),
        ("serve", "port=http", "port=http: give a port from 0"),
        ("retrieve", "port=70000", "port=70000: give a port from 0"),
        ("collect", "attempts=0", "attempts=0: give a whole number, 1 or more"),
        ("judge", "only_correct=1", "only_correct=1: give true or false"),
        ("fidelity", "timeout_s=soon", "timeout_s=soon: give seconds, more than 0"),
        ("data", "name=wiki81", "name=wiki81: choose one of nq_hotpotqa"),
        ("data", "nmae=wiki18", "nmae: zerosearch data has no such key; did you mean name?"),
        ("plan", "gpu_gib=-80", "gpu_gib=-80: give a number above 0"),
        ("plan", "card=h1000", "card=h1000: choose one of h100, h100_pcie"),
    ],
)
def test_a_wrong_word_is_one_sentence(
    program: str, word: str, sentence: str, tmp_path: Path
) -> None:
    assert sentence in said_here(program, [word], tmp_path)


def test_of_two_choices_that_do_not_go_together_both_are_named(tmp_path: Path) -> None:
    words = ["experiment=cold_start_smollm2", "seed=1", "data=geography"]
    assert (
        "data=geography does not go with experiment=cold_start_smollm2: that one chooses episode=, "
        "which is not there with data=geography; leave one of the two out"
    ) in said_here("tune", words, tmp_path)


@pytest.mark.parametrize(
    ("program", "word", "sentence"),
    [
        ("train", "seed=abc", "seed=abc: give a whole number from 0"),
        ("train", "policy_step=4", "did you mean policy_steps?"),
        ("train", "tags=[a", "tags=[a: no viable alternative"),
        ("train", "simulator=no/such", "is no folder of a tuned simulator"),
        ("train", "simulator=prompted_3b", "simulator.endpoints is empty"),
        ("train", "search=null", "search is needed, and is not there: give search="),
        ("ask", "temperature=-1", "temperature=-1: give a number, 0 or more"),
        ("retrieve", "port=70000", "port=70000: give a port from 0"),
    ],
)
def test_a_refusal_loads_nothing_heavy_and_shows_no_traceback(
    program: str, word: str, sentence: str, light: dict[str, str], tmp_path: Path
) -> None:
    assert sentence in refused(program, word, env=light, logs=tmp_path)


@pytest.mark.parametrize("word", ["seed=abc", "policy_step=4", "simulator=no/such"])
def test_who_wants_tracebacks_gets_them(word: str, light: dict[str, str], tmp_path: Path) -> None:
    done = ended("train", word, env=light | {"HYDRA_FULL_ERROR": "1"}, logs=tmp_path)
    assert done.returncode == 1 and "Traceback (most recent call last)" in done.stdout


NOBODY = "nobody asks the simulator"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["simulator=prompted_3b"],
            "simulator.endpoints is empty: start a server with `zerosearch simul",
        ),
        (["simulator=prompted_3b"], "endpoints.prompted_3b=[URL]"),
        (["simulator=prompted_3b", "search=scripted"], NOBODY),
        (["simulator=prompted_3b", "search=bm25"], NOBODY),
        (["simulator.reliability=0.5", "search=bm25"], NOBODY),
        (["endpoints.prompted_3b=[http://h/v1]", "search=bm25"], NOBODY),
        (
            ["simulator=tuned_3b", "simulator.launch=true"],
            "zerosearch template sunhaonlp/",
        ),
        (["simulator=tiny_tuned"], "`make simulator-quickstart` makes it"),
        (["simulator=llm", "simulator.model=m", "simulator.prompt_template=no.j2"], "'no.j2'"),
        (["simulator=llm", "simulator.endpoints=[http://h/v1]"], "simulator.model is not set"),
        (["simulator=llm", "simulator.model=m"], "give simulator.endpoints=[URL], or let"),
        (["simulator=prompted_3b", "simulator.launch=yes"], "simulator.launch=yes: give true"),
        (["simulator=prompted_3b", "simulator.endpoints=http://h"], "http://h: give a list"),
        (["simulator=prompted_3b", "endpoints.prompted_3b=null"], "endpoints=None: give a list"),
        (["simulator=prompted_3b", "simulator.endpoints=['http://[::1']"], "Invalid IPv6 URL"),
        (["simulator=prompted_3b", "simulator.endpoints=[here]"], "here (no URL: give http://"),
        (["experiment=zerosearch_7b"], "simulator.endpoints is empty"),
        (["experiment=search_r1_7b", "simulator=prompted_7b"], NOBODY),
        (["experiment=r1_7b", "search=simulated"], "none is chosen: add simulator=NAME"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_simulator_that_cannot_play_is_refused(
    words: list[str], sentence: str, tmp_path: Path
) -> None:
    assert sentence in said_here("train", words, tmp_path)


def test_a_simulator_that_is_not_there_is_refused(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    for words in (
        [f"endpoints.prompted_7b=[{url}]", "simulator=prompted_7b"],
        [f"simulator.endpoints=[{url}]", "experiment=zerosearch_7b"],
    ):
        said = said_here("train", words, tmp_path)
        assert f"no simulator answers at {url}" in said
        assert "zerosearch simulate simulator=prompted_7b" in said


def test_a_refused_run_says_so_in_its_summary(light: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused("train", "seed=x", f"hydra.run.dir='{run}'", env=light, logs=tmp_path)
    facts = json.loads((run / "summary.json").read_text())
    assert facts["status"] == "failed" and facts["error"].startswith("InputError: seed=x: give")
    (run / "summary.json").write_text('{"status": "completed"}')
    refused("train", f"resume={run}", "seed=y", env=light, logs=tmp_path)
    assert json.loads((run / "summary.json").read_text()) == {"status": "completed"}, "it still is"


@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["run", "sweep"])
def test_a_folder_that_cannot_be_made_is_one_sentence(
    flags: list[str], light: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()  # as in a working directory that cannot be written
    said = refused("train", *flags, env=light, logs=tmp_path / "file")
    assert said.startswith(f"{tmp_path / 'file'}")
    assert said.endswith("): give another folder with paths.log_dir=FOLDER\n")


@pytest.mark.slow
def test_invariant_20_every_job_of_a_sweep_runs_and_every_failure_has_its_line(
    light: dict[str, str], tmp_path: Path
) -> None:
    said = refused("train", "-m", "simulator=prompted_3b,prompted_7b", env=light, logs=tmp_path)
    table, count, last = said.partition("jobs that failed: 2")
    last_lines = table.partition("2 jobs: 2 failed")[2]
    for size in ("3b", "7b"):
        named = f"simulator=prompted_{size}: failed, InputError: simulator.endpoints"
        assert last_lines.count(named) == 1
        assert f"endpoints.prompted_{size}=[URL]" in last_lines
    assert count and "prompted" not in last, "the table has named them"


@pytest.mark.slow
def test_flags_may_stand_between_overrides(light: dict[str, str], tmp_path: Path) -> None:
    words = ["endpoints.tuned_3b=[http://h/v1]", "-m", "seed=x,y", "~logger"]
    said = refused("train", *words, env=light, logs=tmp_path)
    assert "job 1 (seed=y): InputError: seed=y" in said, "a job is named by what differs"


def test_a_sweep_that_is_refused_leaves_no_summary_of_a_job(
    light: dict[str, str], tmp_path: Path
) -> None:
    words = ["-m", "seed=0,1", "optimized.metric=test/f2"]
    said = refused("train", *words, env=light, logs=tmp_path)
    assert said.count("optimized.metric=test/f2 is not measured; there are test/f1") == 1
    assert not [*tmp_path.rglob("summary.json")]


@pytest.mark.slow
def test_the_sweep_over_sizes_is_one_command(light: dict[str, str], tmp_path: Path) -> None:
    said = refused("train", "hparams_search=simulator_size", env=light, logs=tmp_path)
    names = [f"{kind}_{size}" for size in ("3b", "7b", "14b") for kind in ("prompted", "tuned")]
    last = said.partition("6 jobs: 6 failed")[2]
    for name in names:
        assert last.count(f"simulator={name}: failed") == 1
    assert "jobs that failed: 6\n" in last
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


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody can write to")
def test_a_log_folder_that_cannot_be_written_to_is_named(light: dict[str, str]) -> None:
    said = refused("train", env=light, logs=Path("/proc/self/logs"))
    assert "/proc/self/logs cannot be made" in said and "paths.log_dir=FOLDER" in said
