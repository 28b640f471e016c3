"""The one command: it lists the programs, finds the one meant, and starts it as a module."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.commands import light_environment
from tests.helpers.configs import ROOT
from zerosearch import __version__
from zerosearch.cli import COMMANDS, PROGRAMS, called, main, overview
from zerosearch.commands.train import main as train

WITH_FLAGS = ("compare", "export", "init", "merge", "template")


def test_help_lists_every_command_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    lines = overview().splitlines()
    for group, programs in PROGRAMS.items():
        start = lines.index(f"{group}:")
        listed = [line.split()[0] for line in lines[start + 1 : start + 1 + len(programs)]]
        assert listed == list(programs)
    for words in ([], ["--help"], ["-h"], ["help"]):
        main(words)
        assert capsys.readouterr().out == overview() + "\n"
    main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


def test_every_command_has_its_module() -> None:
    assert [name for name, program in COMMANDS.items() if find_spec(program.module) is None] == []
    assert called("zerosearch.commands.train") == "zerosearch train"
    assert called("zerosearch.serving.guard") == "python -m zerosearch.serving.guard"


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
    monkeypatch.setattr(sys, "argv", ["train.py", "--foo"])
    with pytest.raises(SystemExit) as ended:
        train()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: zerosearch train [--help]")


# Lightning starts a run's further processes, and a sweep its jobs, as the module of __main__.
PROBE = "import __main__, sys; print(__main__.__spec__.name, __spec__.name, sys.argv[1:])"
AS_SCRIPT = """
import sys
assert {"hydra", "torch"}.isdisjoint(sys.modules)
sys.path.remove("")  # a script sees its own folder in place of the working directory
from zerosearch import cli
cli.COMMANDS["probe"] = cli.Program("probe", "")
cli.main()
assert {"hydra", "torch"}.isdisjoint(sys.modules), "nothing heavy is loaded on the way"
"""


def test_a_command_runs_as_its_module_and_finds_classes_of_the_working_directory(
    tmp_path: Path,
) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    done = subprocess.run(
        [sys.executable, "-c", AS_SCRIPT, "probe", "seed=1", "-m"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "probe probe ['seed=1', '-m']\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help(name: str, tmp_path: Path) -> None:
    light = light_environment(tmp_path) if name != "export" else os.environ
    done = subprocess.run(
        [sys.executable, "-m", "zerosearch", name, "--help"],
        cwd=ROOT,
        env={**light},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    wanted = f"usage: zerosearch {name} " if name in WITH_FLAGS else "== Configuration groups =="
    assert wanted in done.stdout
