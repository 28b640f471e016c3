"""The one command: it lists the commands, finds the one meant, and runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import WITH_FLAGS
from tests.helpers.configs import CONFIGS, ROOT
from zerosearch import __version__
from zerosearch.cli import COMMANDS, NAMES, main, overview


def test_help_lists_every_command_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    lines = overview().splitlines()
    for group, commands in COMMANDS.items():
        start = lines.index(f"{group}:")
        listed = [line.split()[0] for line in lines[start + 1 : start + 1 + len(commands)]]
        assert listed == list(commands)
    for words in ([], ["--help"], ["-h"], ["help"]):
        main(words)
        assert capsys.readouterr().out == overview() + "\n"
    main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


def test_every_command_is_a_module_of_its_name_and_no_module_lacks_a_command() -> None:
    folder = ROOT / "src" / "zerosearch" / "commands"
    assert sorted(path.stem for path in folder.glob("[a-z]*.py")) == sorted(NAMES)


def test_every_command_of_hydra_has_a_yaml_of_its_name_and_no_other_lies_there() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == sorted({*NAMES} - {*WITH_FLAGS})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trian", "did you mean `zerosearch train`?"),
        ("simulator", "did you mean `zerosearch simulate`?"),
        ("policy_steps=2", "`zerosearch --help` lists them"),
    ],
)
def test_an_unknown_command_gets_the_nearest_name(
    name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{name}: there is no such command; {hint}\n"


def test_a_wrong_flag_is_told_the_name_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(sys, "argv", ["zerosearch", "train", "--foo"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: zerosearch train [--help]")


AS_SCRIPT = """
import sys
sys.path.remove("")  # a script sees its own folder in place of the working directory
from zerosearch import cli
assert {"hydra", "torch"}.isdisjoint(sys.modules), "nothing heavy is loaded on the way"
import zerosearch.commands
zerosearch.commands.__path__.append("")  # commands of the test
cli.NAMES.append("probe")
cli.main()
"""
# Lightning starts further ranks as the module of __main__, with the words of Hydra's job.
PROBE = """
import __main__, sys
def main():
    import mine
    print(__main__.__spec__.name, sys.argv)
"""


def test_a_command_finds_classes_of_the_working_directory_and_can_be_started_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "mine.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", AS_SCRIPT, "probe", "seed=1", "-m"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    said = "zerosearch.__main__ ['zerosearch probe', 'seed=1', '-m']\n"
    assert done.stdout == said, done.stderr
