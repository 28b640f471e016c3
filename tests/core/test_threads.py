"""Waiting threads sleep in every command, unless the user wants them otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers.configs import ROOT
from zerosearch.core.threads import wait_without_spinning


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_the_users_own_setting_wins(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_a_command_settles_it_before_torch_is_loaded() -> None:
    known = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in known}
    code = (
        "import sys, os\n"
        "from zerosearch.cli import main\n"
        "try: main(['train', 'resume=nowhere'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
        "os.environ['OMP_DISPLAY_ENV'] = 'verbose'\n"  # OpenMP prints what it has read
        "import torch"
    )
    environment["PYTHONPATH"] = str(ROOT / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("this torch brings no OpenMP that says what it has read")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
