"""An environment in which all is installed and whose programs only note how they are called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.configs import ROOT

RECORDER = f"""#!{sys.executable} -IS
import json, os, sys
with open(os.environ["RECORDS"], "a") as file:
    print(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], dict(os.environ)]), file=file)
"""
PROGRAMS = ("python", "pip", "torchrun", "sbatch", "curl", "zerosearch")
RECORDS = "records"


@dataclass(frozen=True)
class Call:
    """One program as it was called."""

    program: str
    arguments: list[str]
    environment: dict[str, str]


def make_environment(folder: Path) -> Path:
    """Fill a folder with the programs; returns it."""
    programs = folder / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    for name in (".zerosearch-installed", ".zerosearch-vllm-cpu"):
        (folder / name).write_text(f"{ROOT}\n")
    return folder


def run(environment: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout, where the programs of the environment come first."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    given = own | {
        "VIRTUAL_ENV": str(environment),
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "RECORDS": str(environment / RECORDS),
    }
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=300)


def calls(environment: Path) -> list[Call]:
    """What was called so far, in order."""
    file = environment / RECORDS
    lines = file.read_text().splitlines() if file.exists() else []
    return [Call(*json.loads(line)) for line in lines]
