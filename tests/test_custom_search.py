"""The engine of docs/custom_search.md, as it is printed there, in a run of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.helpers.configs import ROOT
from tests.helpers.http_server import Asked, HttpServer, Sent
from tests.helpers.runs import small_run


def blocks() -> dict[str, str]:
    """Code blocks of the page by language."""
    page = (ROOT / "docs" / "custom_search.md").read_text(encoding="utf-8")
    return dict(re.findall(r"```(python|yaml)\n(.*?)```", page, re.DOTALL))


def answer(asked: Asked) -> Sent:
    wanted = parse_qs(urlsplit(asked.path).query)
    rows = [{"title": "t", "text": f"red {wanted['q'][0]}"}] * int(wanted["k"][0])
    return Sent(body=rows)


def test_the_engine_of_the_page_is_as_short_as_the_page_says() -> None:
    lines = [line for line in blocks()["python"].splitlines() if line.strip()]
    assert len(lines) <= 30


def test_the_engine_of_the_page_answers_a_training_run(tmp_path: Path) -> None:
    code = blocks()
    (tmp_path / "my_engines.py").write_text(code["python"])
    (tmp_path / "my_configs" / "search").mkdir(parents=True)
    (tmp_path / "my_configs" / "search" / "library.yaml").write_text(code["yaml"])
    with HttpServer(answer) as server:
        command = [
            *(sys.executable, "-m", "zerosearch", "train", "--config-dir", "my_configs"),
            *small_run(tmp_path),
            *("search=library", f"search.engine.url={server.url}/search"),
            *("search.cache=use", f"search.cache_folder={tmp_path / 'cache'}"),
            *("evaluation=same_engine", "test=false", "policy_steps=2"),
            f"paths.log_dir={tmp_path / 'logs'}",
        ]
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'src'}"}
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert server.asked and all(each.path.startswith("/search?q=") for each in server.asked)
    summary = json.loads((tmp_path / "logs" / "train" / "latest" / "summary.json").read_text())
    assert summary["status"] == "completed" and summary["cost/searches"] > 0
    assert 0 < summary["cost/calls"] <= summary["cost/searches"]
