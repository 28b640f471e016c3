"""Whoever uses a name of 0.1 is told today's."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.command_line.test_command import said_here
from tests.helpers.configs import ROOT, compose_config
from zerosearch.cli import NAMES, main
from zerosearch.core.renamed import COMMANDS, KEYS, new_key

# a command line with each of today's names, * filled in
WITH = {
    "agent.client": ("collect", ["agent=chat"]),
    "agent.sampling": ("ask", []),
    "algorithm.resampling_rounds": ("train", []),
    "curriculum.shape": ("train", []),
    "engines.bm25.search": ("evaluate", ["engines=geography"]),
    "evaluation.bm25.sampling": ("train", []),
    "generator.engine_args": ("train", ["generator=vllm"]),
    "generator.lora_sync": ("train", ["generator=vllm"]),
    "judge.client": ("judge", ["judge=llm"]),
    "module.sampling": ("train", []),
    "rollout.lag": ("train", []),
    "sets.wiki18.files.corpus.min_rows": ("data", []),
    "sets.wiki18.files.corpus.path": ("data", []),
    "simulator.client": ("train", ["simulator=prompted_3b"]),
}


@pytest.mark.parametrize(
    ("program", "words", "sentence"),
    [
        ("train", ["curriculum.schedule=linear"], "curriculum.schedule: is curriculum.shape now"),
        ("train", ["data.lag=1"], "data.lag: is rollout.lag now"),
        ("train", ["+simulator.chat.model=x"], "+simulator.chat.model: is simulator.client.model"),
        ("train", ["experiment=simulator_sft"], "is `zerosearch tune model=NAME` now"),
        ("tune", ["experiment=simulator_sft"], "is `zerosearch tune model=NAME` now"),
        ("train", ["task=tune_simulator"], "task: leave it out, the command says it: zerosearch"),
        ("tune", ["seed=1", "~task"], "task: leave it out, the command says it: zerosearch"),
        ("train", ["job=x.y"], "job: leave it out, the command says it"),
        ("plan", ["made_for.task=null"], "made_for.task: is made_for.train or made_for.tune"),
        (
            "evaluate",
            ["engines=geography", "engines.scripted.engine.engine.splits=null"],
            "engines.scripted.engine.engine.splits: is engines.scripted.search.engine.splits now",
        ),
        (
            "judge",
            ["judge=llm", "judge.chat.model=x"],
            "judge.chat.model: is judge.client.model now",
        ),
    ],
)
def test_an_old_name_is_told_the_new_one(
    program: str, words: list[str], sentence: str, tmp_path: Path
) -> None:
    assert sentence in said_here(program, words, tmp_path)


def test_an_experiment_that_is_not_there_is_not_said_to_be_of_another_command(
    tmp_path: Path,
) -> None:
    said = said_here("tune", ["experiment=simulator_sft_7"], tmp_path)
    assert "did you mean experiment=simulator_sft_7b?" in said


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("module.decoding.temperature", "module.sampling.temperature"),
        ("evaluation.bm25.decoding.top_p", "evaluation.bm25.sampling.top_p"),
        ("simulator.chat", "simulator.client"),
        ("generator.engine_args.max_num_seqs", None),
        ("evaluation.decoding", None),
        ("model.chat", None),
    ],
)
def test_a_key_is_renamed_with_all_below_it(old: str, new: str | None) -> None:
    assert new_key(old) == new


LINES = {(program, *words) for program, words in WITH.values()}


@pytest.mark.parametrize("line", sorted(LINES), ids=" ".join)
def test_one_of_both_names_is_known(line: tuple[str, ...], tmp_path: Path) -> None:
    program, *words = line
    cfg = compose_config(tmp_path, *words, name=program)
    for name in [name for name, each in WITH.items() if (each[0], *each[1]) == line]:
        for old, new in KEYS.items():
            if fnmatchcase(name, new):
                pairs = zip(new.split("."), name.split("."), strict=True)
                kept = iter([part for star, part in pairs if star == "*"])
                before = ".".join(next(kept) if each == "*" else each for each in old.split("."))
                assert exists(cfg, name) != exists(cfg, before), (before, name)


def test_every_new_name_is_looked_for() -> None:
    assert all(any(fnmatchcase(name, new) for name in WITH) for new in KEYS.values())


def test_the_changelog_has_every_old_name_beside_the_new_one() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    for old, new in KEYS.items():
        row = re.compile(rf".*`{re.escape(old)}`.* \| .*`{re.escape(new)}`")
        assert any(map(row.match, lines)), f"{old}: give it a row of the table"


def exists(cfg: DictConfig, name: str) -> bool:
    """Whether a key is there, whatever its value."""
    place, _, last = name.rpartition(".")
    return last in (OmegaConf.select(cfg, place) or {})


def test_an_old_command_is_told_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(COMMANDS.values()) <= set(NAMES) and not set(COMMANDS) & set(NAMES)
    with pytest.raises(SystemExit):
        main(["fetch", "name=wiki18"])
    said = "fetch: there is no such command; did you mean `zerosearch data`?\n"
    assert capsys.readouterr().err == said
