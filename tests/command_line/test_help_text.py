"""`zerosearch NAME --help` says what a command does, and what of its own can be chosen and set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.configs import CONFIGS
from zerosearch.command_line import user_configs
from zerosearch.command_line.help_text import head, help_text

YAMLS = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.stem)
def test_the_head_of_a_yaml_says_what_the_command_does_with_two_examples(file: Path) -> None:
    first, *lines = head(file.read_text()).splitlines()
    assert not first.startswith(" ")
    examples = [line for line in lines if line.startswith("  ")]
    assert len(examples) == 2
    assert all(line.startswith(f"  zerosearch {file.stem} ") for line in examples)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    user_configs.register()
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "configs" / "search" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("defaults: [bm25]\n")
    return help_text("evaluate", ["search=none", "--help"], sweeps=True)


def line_of(key: str, text: str) -> str:
    [found] = re.findall(rf"^  {re.escape(key)}=.*(?:\n {{8,}}.*)*", text, re.MULTILINE)
    return " ".join(found.split())


def test_groups_are_those_of_the_command_with_the_choice_taken(shown: str) -> None:
    assert line_of("search", shown).startswith("search=none or bm25, dense, mine,")
    assert line_of("methods", shown).startswith("methods=[policy] or all, baselines,")
    assert "\n  algorithm=" not in shown and "\n  hydra" not in shown and "@" not in shown
    experiments = line_of("experiment", help_text("tune", [], sweeps=True))
    assert "simulator_sft_7b" in experiments and "quickstart" not in experiments


def test_keys_have_their_value_and_their_remark(shown: str) -> None:
    assert line_of("temperature", shown) == "temperature=0.0 greedy"
    assert line_of("checkpoint", shown).startswith("checkpoint=null run folder, exported policy")
    trained = help_text("train", ["policy_steps=7"], sweeps=True)
    assert line_of("policy_steps", trained) == "policy_steps=7"
    assert line_of("optimizer.weight_decay", trained) == "optimizer.weight_decay=0.0"
    assert "_target_" not in trained and "task_name" not in trained
