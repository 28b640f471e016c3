"""The package as it is installed elsewhere: a wheel in an empty environment, used in other folders.

`make test-package` runs these, which install everything once more; `make test` does not.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.commands import WITH_FLAGS, forbid_heavy
from tests.helpers.configs import CONFIGS, ROOT
from zerosearch import __version__
from zerosearch.cli import NAMES
from zerosearch.core.runs import read_summary

pytestmark = pytest.mark.slow

BUILD = (
    "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
)
SOURCE = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "configs", "src")
TWO_RANKS = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
SHORT = ["policy_steps=1", "questions_per_step=2", "test=false", "simulator_check=off"]


def built(command: str, source: Path, folder: Path) -> Path:
    folder.mkdir()
    words = [sys.executable, "-c", BUILD, command, str(folder)]
    subprocess.run(words, cwd=source, check=True, capture_output=True)
    [made] = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of what the source distribution holds, made without a trace in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "tree").mkdir()
    for name in SOURCE:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, folder / "tree" / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / "tree" / name)
    local = folder / "tree" / "configs" / "local" / "default.yaml"
    local.parent.mkdir(exist_ok=True)
    local.write_text("# @package _global_\nseed: 7\n")  # of one machine: is not shipped
    with tarfile.open(built("build_sdist", folder / "tree", folder / "sdist")) as archive:
        # Python 3.11.0 to 3.11.3 has no filters
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(folder / "unpacked")
    [source] = (folder / "unpacked").iterdir()
    return built("build_wheel", source, folder / "dist")


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Programs of an environment that was empty: the wheel, what it asks for, and pytest."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install"]
    pip += ["--quiet", "-c", ROOT / "constraints" / "cpu.txt"]
    asked = subprocess.run(
        [*pip, "--dry-run", "--no-deps", "tenacity"], capture_output=True, text=True
    )
    if asked.returncode != 0:
        pytest.skip(f"pip finds no packages: {asked.stderr.strip().splitlines()[-1]}")
    if index := os.environ.get("TORCH_INDEX"):  # as in the Makefile
        subprocess.run([*pip, "torch", "--index-url", index], check=True)
    subprocess.run([*pip, wheel, "pytest"], check=True)
    yield environment / "bin"
    shutil.rmtree(environment)  # 1.6 GB, which pytest would keep


def run(program: str | Path, *words: str | Path, folder: Path, **variables: str) -> str:
    """Output of a program in a folder that is no checkout."""
    without = ("PYTHONPATH", "PROJECT_ROOT", "ZEROSEARCH_DATA")
    environment = {name: value for name, value in os.environ.items() if name not in without}
    done = subprocess.run(
        [program, *words],
        cwd=folder,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def last_run(folder: Path) -> tuple[Path, dict[str, object]]:
    latest = (folder / "logs" / "train" / "latest").resolve()
    return latest, json.loads((latest / "summary.json").read_text())


def test_everything_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src"
    files = [file.relative_to(package) for file in package.rglob("*") if file.is_file()]
    wanted = {
        str(file)
        for file in files
        if "__pycache__" not in file.parts and file.parts[0] == "zerosearch"
    }
    local = CONFIGS / "local"
    shipped = [file for file in CONFIGS.rglob("*.yaml") if local not in file.parents]
    wanted |= {f"zerosearch/{file.relative_to(ROOT)}" for file in shipped}
    assert {name for name in names if ".dist-info/" not in name} == wanted


def test_the_environment_is_complete_and_sees_no_checkout(programs: Path, tmp_path: Path) -> None:
    run(programs / "python", "-m", "pip", "check", folder=tmp_path)
    where = "import sys, zerosearch; print(zerosearch.__file__, *sys.path, sep='\\n')"
    said = run(programs / "python", "-c", where, folder=tmp_path)
    assert said.startswith(f"{programs.parent}{os.sep}") and str(ROOT) not in said


@pytest.mark.parametrize("name", NAMES)
def test_every_command_answers_help(name: str, programs: Path, tmp_path: Path) -> None:
    forbid_heavy(tmp_path)
    said = run(programs / "zerosearch", name, "--help", folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert said.startswith(f"usage: zerosearch {name} ")
    if name in WITH_FLAGS:
        module = ROOT / "src" / "zerosearch" / "commands" / f"{name}.py"
        about = ast.get_docstring(ast.parse(module.read_text()))
        assert about and f"\n\n{about}\n\n" in said


def test_the_quickstart_trains_in_any_folder(programs: Path, tmp_path: Path) -> None:
    tmp_path = tmp_path / 'it\'s a "folder"'
    own = tmp_path / "configs"
    (own / "curriculum").mkdir(parents=True)
    (own / "train.yaml").write_text("seed: 9\n")  # a command's own: is not read
    (own / "curriculum" / "mine.yaml").write_text("defaults: [paper]\nstart: 0.125\n")
    run(programs / "zerosearch", "train", "policy_steps=2", "curriculum=mine", folder=tmp_path)
    place, facts = last_run(tmp_path)
    assert f"options are taken from {own}, too\n" in (place / "train.log").read_text()
    assert place.parent == tmp_path / "logs" / "train" / "runs"
    assert (facts["status"], facts["seed"]) == ("completed", 0)
    assert facts["version"] == __version__ and "git_commit" not in facts
    assert len((place / "metrics.csv").read_text().splitlines()) == 3
    assert "start: 0.125" in (place / ".hydra" / "config.yaml").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "logs"]


PROBE = """
import os, sys
import lightning.pytorch as lightning

class Probe(lightning.Callback):
    def on_train_start(self, trainer, module):
        with open(f"rank{trainer.global_rank}", "a") as file:
            print(trainer.world_size, *sys.argv[1:], file=file)
"""


@pytest.mark.parametrize("way", ["script", "module", "sweep"])
def test_a_run_of_two_processes_starts_its_second(way: str, programs: Path, tmp_path: Path) -> None:
    """It has the words of the first, finds the same classes, and goes on in one folder."""
    (tmp_path / "probe.py").write_text(PROBE)
    words = [*TWO_RANKS, *SHORT, "+callbacks.probe._target_=probe.Probe"]
    start = [programs / "python", "-m", "zerosearch", "train"]
    start = [programs / "zerosearch", "train"] if way == "script" else start
    run(*start, *(["-m", "seed=0,1"] if way == "sweep" else []), *words, folder=tmp_path)
    if way != "sweep":
        run(*start, "resume=latest", "policy_steps=2", folder=tmp_path)
    first, second = ((tmp_path / f"rank{rank}").read_text().splitlines() for rank in (0, 1))
    assert len(first) == len(second) == 2, "a line for each start"
    assert first[0].startswith("2 train ") and words[-1] in first[0]
    for ours, theirs in zip(first, second, strict=True):  # Lightning adds the folder
        assert theirs.startswith(ours) and "hydra.run.dir=" in theirs
    runs = [path.parent for path in tmp_path.glob("logs/train/*runs/**/summary.json")]
    assert len(runs) == (2 if way == "sweep" else 1)
    assert all(read_summary(path)["status"] == "completed" for path in runs)
    steps = len((runs[0] / "metrics.csv").read_text().splitlines()) - 1
    assert steps == (1 if way == "sweep" else 2)


def test_a_project_of_ones_own_passes_its_test(programs: Path, tmp_path: Path) -> None:
    said = run(programs / "zerosearch", "init", "project", folder=tmp_path)
    written = {path for path in (tmp_path / "project").rglob("*") if path.is_file()}
    assert {tmp_path / line for line in said.splitlines()[:-1]} == written
    project = tmp_path / "project"
    assert "1 passed" in run(programs / "python", "-m", "pytest", "-q", folder=project)
    lines = (project / "my_engine.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 30

    before = {path: path.read_bytes() for path in written}
    (project / "my_reward.py").write_text("# mine")
    refused = subprocess.run(
        [programs / "zerosearch", "init", str(project)], capture_output=True, text=True
    )
    assert refused.returncode == 1 and "my_reward.py" in refused.stderr
    changed = [path for path in before if path.read_bytes() != before[path]]
    assert changed == [project / "my_reward.py"], "nothing of the user's is overwritten"
