"""`configs/` of the working directory: it adds options and wins, and never is a command's YAML."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.helpers.configs import CONFIGS, ROOT, checked, compose_config, hydra_run
from zerosearch.command_line.arguments import expand_null_groups
from zerosearch.command_line.help_text import help_text
from zerosearch.command_line.user_configs import find, own_folder, register, say_folder


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory's folder; Hydra knows of it."""
    register()
    monkeypatch.chdir(tmp_path)
    files = {
        "train": "seed: 9",
        "experiment/mine": "# @package _global_\ndefaults: [quickstart]\npolicy_steps: 3\n"
        "made_for: {experiment: {model: quickstart}}",
        "curriculum/paper": "defaults: [constant]\nstart: 0.25",
        "shared/settings": "a: 1",
    }
    for name, text in files.items():
        file = tmp_path / "configs" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "configs"


def test_it_adds_options_and_wins_but_not_for_a_command(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = compose_config(own, "experiment=mine", whole=True)
    assert (cfg.policy_steps, cfg.curriculum.start) == (3, 0.25)
    assert cfg.seed == 0, "train.yaml is the command's own"
    assert cfg.rubric == compose_config(own).rubric, "the rest is as shipped"
    with hydra_run(cfg), caplog.at_level(logging.INFO):
        say_folder()
    assert caplog.messages == [
        f"options are taken from {own}, too, in place of those shipped: curriculum/paper"
    ]


def test_what_is_said_of_choices_knows_it(own: Path) -> None:
    with pytest.raises(ValueError, match=r"experiment=mine is made for .* with policy_steps=3"):
        checked(own, "experiment=mine", "model=smollm2_135m")
    assert expand_null_groups(["shared=null", "seed=null"]) == ["~shared", "seed=null"]
    assert find("curriculum/paper.yaml") == own / "curriculum" / "paper.yaml"
    assert find("curriculum/linear.yaml") == CONFIGS / "curriculum" / "linear.yaml"
    assert find("curriculum/none.yaml") is None


def test_in_a_checkout_there_is_one_folder(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_folder() == own
    monkeypatch.chdir(ROOT)
    assert own_folder() is None


def test_an_option_cannot_extend_the_one_whose_place_it_takes(own: Path) -> None:
    (own / "curriculum" / "paper.yaml").write_text("defaults: [paper]\nstart: 0.25")
    with pytest.raises(ValueError, match=r"paper has itself among its defaults, .* another name"):
        compose_config(own)


def test_a_folder_of_another_project_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options of names that are not chosen, groups that are not ours, files that are no options."""
    register()
    shipped = compose_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    files = {
        "train.yaml": "defaults: [_self_, model: resnet]\ntask_name: images",
        "model/resnet.yaml": "_target_: images.ResNet",
        "model/broken.yaml": "{{ a: [",
        "optimizer/sgd.yaml": "lr: 1",
        "data/notes.txt": "of the data",
    }
    for name, text in files.items():
        file = tmp_path / "configs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert compose_config(tmp_path) == shipped


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("defaults: [cosine]", "curriculum/cosine"),
        ("a: 1\nb: [", "curriculum/paper.yaml, line 2: "),
    ],
)
def test_an_error_of_composition_names_the_folder(
    content: str,
    wrong: str,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (own / "curriculum" / "paper.yaml").write_text(content)
    monkeypatch.setattr(sys, "argv", ["zerosearch train", "--cfg", "job"])
    monkeypatch.setenv("PROJECT_ROOT", str(own.parent))  # both would be set for good
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    with pytest.raises(SystemExit):
        import_module("zerosearch.commands.train").main()
    said = capsys.readouterr().err.splitlines()
    assert wrong in said[0]
    assert said[1:] == [
        f"options are taken from {own}, too, in place of those shipped: curriculum/paper"
    ]


@pytest.mark.parametrize("content", ["a: [", "[a, b]", ""])
def test_an_experiment_that_cannot_be_read_breaks_no_help(content: str, own: Path) -> None:
    (own / "experiment" / "mine.yaml").write_text(content)
    assert "mine" in help_text("train", [], sweeps=True)
