"""The commands of the pages, the Makefile and the configuration's comments do what they promise.

Each is read from where people read it, given to the shell and to the real `make`, and what is
called then is composed and checked in this process: with everything in place that a command needs,
and with nothing, when it has to say in one sentence what is missing.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tests.helpers.commands import Composed, called_by, composed, program_of, refusal
from tests.helpers.configs import CONFIGS, ROOT, compose_config
from tests.helpers.pages import (
    COMMENTED,
    PAGES,
    Shown,
    commands_of,
    commands_of_comments,
    overrides_of,
)
from tests.helpers.recorded import Call, make_environment

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

OWN_FILES = (
    *(
        "mine.parquet",
        "mine.jsonl",
        "a.jsonl",
        "train.jsonl",
        "held_out.parquet",
        "questions.jsonl",
    ),
    *("my.jsonl.gz", "wiki.jsonl.gz", "corpus.jsonl.gz", "qa_test.parquet", "rows.jsonl"),
    *("logs/simulation/geography/train.jsonl", "logs/simulation/geography/validation.jsonl"),
    *("data/google/train.jsonl", "data/google/validation.jsonl", "log.jsonl.gz"),
    *("episodes.jsonl", "logs/cold_start/rule/episodes.jsonl"),
    "logs/smollm2_geography/episodes/episodes.jsonl",
    "logs/templates/simulation_google.j2",
    "logs/tune/latest/simulator/prompt.j2",
    *(f"logs/simulation/geography/simulator{size}/prompt.j2" for size in ("", "_0_7m", "_3m")),
)
# What a command may lack where all files and servers are there.
NOT_HERE = re.compile(
    r"simulator\.endpoints is empty: start a server with `zerosearch simulate simulator="
    r"|trainer\.accelerator=gpu, but no CUDA GPU is visible here"
    r"|search\.engine\.model=intfloat/e5-base-v2 "
)
SAVED = {
    "train": "[experiment=zerosearch_3b, 'simulator.endpoints=[http://127.0.0.1:8000/v1]']",
    "evaluate": "[]",
}
WRONG = (ValueError, HydraException, OmegaConfBaseException, SystemExit, ModuleNotFoundError)
NAME = r"(?<![\w.])([a-z][a-z0-9_]*(?:[./][a-z0-9_]+)*)"
KEY = re.compile(NAME + r"(?=(?:\[\d+\])?=| is (?:empty|not set)|: )")


# -- the world in which the commands are given -----------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands name: files, data sets, a finished run of either kind."""
    folder = tmp_path_factory.mktemp("world")
    fetched = compose_config(folder, "name=wiki18", name="data").sets
    public = [
        f"public/{name}/{file}"
        for name, files in {
            "nq_hotpotqa": [each.name for each in fetched.nq_hotpotqa.files.values()],
            "benchmarks": [each.name for each in fetched.benchmarks.files.values()],
            "wiki18": [fetched.wiki18.files.corpus.name],
            "hotpotqa_small": ["qa_train.jsonl", "qa_test.jsonl", "corpus.jsonl.gz"],
        }.items()
        for file in files
    ]
    for name in (*OWN_FILES, *public):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CONFIGS.parent / "src/zerosearch/simulator/prompts/tuned.j2", folder / name)
    for program in ("train", "evaluate"):
        make_run(folder / "logs" / program, program)
    [engine] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/custom_search.md").read_text(), re.S)
    (folder / "my_configs" / "search").mkdir(parents=True)
    (folder / "my_configs" / "search" / "library.yaml").write_text(engine)
    return folder


def make_run(task: Path, program: str) -> None:
    """A completed run with a policy, and the link to it."""
    run = task / "runs" / "first"
    shutil.copytree(ROOT / "src" / "zerosearch" / "policy" / "quickstart", run / "policy")
    (run / "policy" / "zerosearch.json").write_text("{}")
    for name, text in {
        "checkpoints/last.ckpt": "",
        "summary.json": '{"status": "completed"}',
        ".hydra/overrides.yaml": SAVED[program],
        ".hydra/hydra.yaml": f"hydra: {{job: {{config_name: {program}}}}}",
    }.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(text)
    (task / "latest").symlink_to("runs/first")


@contextmanager
def within(folder: Path, *, reachable: bool) -> Iterator[pytest.MonkeyPatch]:
    """Within, commands are given in a folder, its data is found, and servers answer or do not."""

    def connect(*_: Any, **__: Any) -> Any:
        if reachable:
            return _Open()
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ZEROSEARCH_DATA", str(folder / "public"))
        patch.setattr(socket, "create_connection", connect)
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield patch


class _Open(nullcontext):
    def close(self) -> None:
        pass


# -- the checks ------------------------------------------------------------------------------------


SEEN: dict[str, str | None] = {}  # what was found of a call; several pages show the same


def faults(shown: list[Shown], world: Path, tmp_path: Path) -> list[str]:
    """What is wrong with some commands, a line for each, with page and line."""
    called, found = called_by(shown, make_environment(tmp_path))
    for each, call in called:
        key = str([call.program, *call.arguments])
        if key not in SEEN:
            SEEN[key] = fault(call, world, tmp_path)
        if said := SEEN[key]:
            found.append(f"{each.where}: `{each.text}`\n    {said}")
    return found


def fault(call: Call, world: Path, empty: Path) -> str | None:
    """What is wrong with one call; None: nothing."""
    try:
        if (program := program_of(call)) is None:
            return None
        with within(world, reachable=True):
            jobs = composed(*program, folder=world / "logs")
            said = [each for job in jobs if (each := refusal(job)) and not NOT_HERE.search(each)]
        if said:
            return said[0]
    except WRONG as error:
        return f"{type(error).__name__}: {error}"
    with within(empty, reachable=False):
        return next((wrong for job in jobs if (wrong := riddle(job, empty))), None)


def riddle(job: Composed, empty: Path) -> str | None:
    """What is no sentence for people in what a command says where nothing is there."""
    module, cfg = job
    cfg.paths.log_dir = str(empty / "logs")
    said = refusal((module, cfg))
    if said is None:
        return None
    keys = [key for key in KEY.findall(said) if in_reach(cfg, key)]
    if not keys or "\n" in said or "Traceback" in said:
        return f"without what it needs it says: {said}"
    return None


def in_reach(cfg: Any, key: str) -> bool:
    """Whether a key stands in a configuration or a group among the choices."""
    first = re.split(r"[./]", key)[0]
    return first in cfg or (CONFIGS / first).is_dir()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_work_or_say_what_is_missing(
    page: Path, world: Path, tmp_path: Path
) -> None:
    shown = commands_of(page)
    has_block = re.search(r"^```\n(make|python|pip|sbatch) ", page.read_text(), re.MULTILINE)
    assert shown or not has_block
    assert not (wrong := faults(shown, world, tmp_path)), "\n".join(wrong)


@pytest.mark.slow
def test_commands_of_comments_work_or_say_what_is_missing(world: Path, tmp_path: Path) -> None:
    shown = [each for file in COMMENTED for each in commands_of_comments(file)]
    named = {each.where.partition(":")[0] for each in shown}
    experiments = {str(path.relative_to(ROOT)) for path in CONFIGS.glob("experiment/*.yaml")}
    assert experiments <= named, "line 3 of an experiment is its command"
    assert not (wrong := faults(shown, world, tmp_path)), "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("make train model.package=mine", "model.package"),
        ("make train search=bm52", "search/bm52"),
        ("make train experiment=zerosearch_7b model=smollm2_135m", "is made for model="),
        ("make train data.files=[nowhere.jsonl]", "data.files[0]=nowhere.jsonl does not exist"),
        ("make train algorithm.group_size=two", "algorithm.group_size=two"),
        ("make train policy_steps=0", "policy_steps=0: give a whole number"),
        ("make sweep seed=0,x", "seed=x: give a whole number"),
        ("make ask question=Why? checkpoint=nowhere/at/all", "there is nothing at this path"),
        ("make train tags=OTHER", "nothing stands in for OTHER"),
        ("make train search.cache=use ...", "nothing stands in for ..."),
        ("make trian", "No rule to make target"),
        ("make lint seed=1", "make lint takes no seed="),
        ("python -m zerosearch.trian", "commands are run as zerosearch NAME"),
        ("zerosearch train --algorithm rloo", "--algorithm: there is no such flag"),
        ("zerosearch trian seed=1", "there is no command trian"),
        ("python -m zerosearch train seed=x", "seed=x: give a whole number"),
        ("zerosearch template rows.json", "SystemExit"),
        ("zerosearch data name=wiki81", "name=wiki81: choose one of"),
        ("python benchmarks/bench_all.py", "there is no benchmarks/bench_all.py"),
        ("pip install -e '.[all]'", "no extras {'all'}"),
    ],
)
def test_a_wrong_command_on_a_page_is_found(
    text: str, said: str, world: Path, tmp_path: Path
) -> None:
    for page, content in {"fence": f"```\n{text}\n```\n", "line": f"a\n\ndo `{text}`\n"}.items():
        (tmp_path / page).mkdir()
        (tmp_path / f"{page}.md").write_text(content)
        [wrong] = faults(commands_of(tmp_path / f"{page}.md"), world, tmp_path / page)
        assert f"{page}.md:{2 if page == 'fence' else 3}" in wrong and said in wrong


def names_in(node: Any) -> set[str]:
    """Every key of a YAML document, at any depth."""
    if isinstance(node, list):
        return set().union(*map(names_in, node))
    if not isinstance(node, dict):
        return set()
    parts = {part for key in node for part in re.split(r"[/@. ]", str(key))}
    return parts.union(*map(names_in, node.values()))


@pytest.fixture(scope="module")
def names() -> set[str]:
    """Every word that keys of the configuration are made of."""
    files = [*CONFIGS.rglob("*.yaml")]
    groups = {part for file in files for part in file.relative_to(CONFIGS).parts[:-1]}
    return groups.union(*(names_in(yaml.safe_load(file.read_text())) for file in files))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_and_choices_that_a_page_names_are_there(page: Path, names: set[str]) -> None:
    words = [(each.where, word) for each in overrides_of(page) for word in each.text.split()]
    wrong = [
        f"{where}: {word}"
        for where, word in words
        if not word.startswith("args=") and not is_there(word, names)
    ]
    assert not wrong, "\n".join(wrong)


def is_there(word: str, names: set[str]) -> bool:
    """Whether a page's override names what the configuration has, as far as it names anything."""
    key, _, value = word.partition("=")
    if not set(re.split(r"[./]", key)) <= names:
        return False
    group = CONFIGS / key
    if not group.is_dir() or value in ("", "NAME", "PATH", "null", "submitit_local"):
        return True
    return all(list(group.glob(f"{name}.yaml")) for name in value.strip("[]").split(","))


@pytest.mark.parametrize("word", ["model.package=x", "rubric=f2", "algorithm/loss=ppo", "sede=1"])
def test_an_override_that_is_not_there_is_found(word: str, names: set[str]) -> None:
    assert not is_there(word, names)
