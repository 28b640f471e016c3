"""`zerosearch serve` as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.helpers.configs import ROOT
from tests.helpers.processes import run_forked
from tests.helpers.waiting import wait_until

COMMAND = ["serve", "model=quickstart", "search=scripted", "port=0"]


def environment(**more: str) -> dict[str, str]:
    plain = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    return os.environ | plain | more


def test_it_answers_the_stock_client_until_it_is_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    log = tmp_path / "log"
    with log.open("w") as file:
        running = subprocess.Popen(
            [sys.executable, "-m", "zerosearch", *COMMAND, "api_key_env=POLICY_KEY", "name=mine"],
            cwd=ROOT,
            env=environment(POLICY_KEY="opensesame"),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "base_url=" in log.read_text() or running.poll() is not None)
        [url] = re.findall(r"base_url=(http://127\.0\.0\.1:\d+/v1)", log.read_text())
        client = openai.OpenAI(base_url=url, api_key="opensesame")
        asked = [{"role": "user", "content": "In which country is Lyon?"}]
        reply = client.chat.completions.create(model="mine", messages=asked)  # type: ignore[arg-type]
        assert reply.choices[0].message.content is not None
        assert reply.model == "mine"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="guess").models.list()
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=600) == 0
    assert "opensesame" not in log.read_text() and "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("api_key_env=NO_SUCH_KEY", "api_key_env=NO_SUCH_KEY: this environment variable is not"),
        ("checkpoint=no/such/place", "checkpoint=no/such/place: there is nothing"),
        ("host=256.1.1.1", "host=256.1.1.1 port=0"),
    ],
)
def test_bad_settings_are_one_sentence(override: str, said: str) -> None:
    done = run_forked(*COMMAND, override, env=environment())
    shown = done.stdout + done.stderr
    assert done.returncode == 1 and said in shown and "Traceback" not in shown
