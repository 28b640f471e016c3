"""A real run in a real TensorBoard, in a real browser: charts drawn, columns few, texts inert."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.helpers.chromium import browser
from tests.helpers.configs import ROOT
from tests.helpers.openai_server import free_port
from tests.helpers.processes import run_forked
from tests.helpers.runs import small_run
from zerosearch.callbacks.tensorboard_layout import POLICY

pytestmark = pytest.mark.slow
GUARD_MS = 300_000  # ends what hangs; a page takes seconds
CARDS = "tf-custom-scalar-multi-line-chart-card, tf-custom-scalar-margin-chart-card"


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a server that has read the runs of a folder."""
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        address = f"http://127.0.0.1:{port}"

        def has_read() -> bool:
            assert server.poll() is None, "TensorBoard ended"
            try:
                return b"quickstart" in urlopen(f"{address}/data/plugin/scalars/tags").read()
            except OSError:
                return False

        try:
            while not has_read():
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()


@dataclass
class Board:
    """A page of TensorBoard, and what went wrong in it."""

    page: Any
    address: str
    wrong: list[str]

    def open(self, tab: str) -> Any:
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}/#{tab}")
        return self.page

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + GUARD_MS / 1000
        while not condition():
            assert time.monotonic() < end, what
            self.page.wait_for_timeout(100)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small run, which asks a question that would like to be more than text."""
    folder = tmp_path_factory.mktemp("board")
    kept = [each for each in small_run(folder) if "max_prompt_tokens" not in each]
    settings = [*kept, "episode.max_prompt_tokens=96"]
    hostile = r'<img src=x onerror="document.title=1">![](http://evil/x.png) *colour* 1'
    held_out = folder / "held_out.jsonl"
    row = held_out.read_text().splitlines()[0].replace("colour 0", hostile.replace('"', r"\""))
    held_out.write_text("\n".join([row, *held_out.read_text().splitlines()[1:]]) + "\n")
    place = [f"paths.log_dir={folder / 'logs'}", f"hydra.run.dir={folder / 'run'}", "seed=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = run_forked("train", *settings, *place, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "logs"


@pytest.fixture(scope="module")
def board(logs: Path) -> Iterator[Board]:
    with browser() as chromium, tensorboard(logs / "tensorboard" / "train") as address:
        page = chromium.new_page(viewport={"width": 1500, "height": 1600})
        page.set_default_timeout(GUARD_MS)
        view = Board(page, address, [])
        page.on("pageerror", lambda error: view.wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: view.wrong.append(f"dialog: {dialog.message}"))
        page.on(
            "console",
            lambda said: view.wrong.append(said.text) if said.type == "error" else None,
        )
        page.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith((address, "data:", "blob:", "about:"))
                else view.wrong.append(f"request: {asked.url}")
            ),
        )
        yield view


@pytest.fixture(autouse=True)
def nothing_goes_wrong(board: Board) -> Iterator[None]:
    yield
    assert board.wrong == []


def test_every_headline_chart_is_drawn(board: Board) -> None:
    page = board.open("custom_scalars")
    page.locator(CARDS).first.wait_for()
    titles = [title for charts in POLICY.values() for title in charts]
    board.wait(lambda: page.locator(CARDS).count() == len(titles), "a card for each chart")
    cards = {card.evaluate("card => card.title"): card for card in page.locator(CARDS).all()}
    assert cards.keys() == set(titles)
    drawn = "paths => paths.map(path => path.getAttribute('d') || '').filter(d => d.length > 20)"
    for title in titles:
        lines = cards[title].locator("path.line")
        board.wait(lambda lines=lines: bool(lines.evaluate_all(drawn)), title)
    reward = cards["reward, and the share of noise"].locator("path.line")
    assert len(reward.evaluate_all(drawn)) >= 2
    interval = cards["F1 of validation questions, by engine"].locator("path.area")
    assert len(interval.evaluate_all(drawn)) >= 1


def test_the_run_is_listed_once_and_by_what_differs(board: Board, logs: Path) -> None:
    runs = urlopen(f"{board.address}/data/runs").read().decode()
    assert runs.count("quickstart") == 1 and "made_for=null" in runs
    assert (logs / "train" / "latest").is_symlink()


def test_hparams_has_few_columns_and_no_none(board: Board) -> None:
    page = board.open("hparams")
    page.locator(".metric-checkbox").first.wait_for()
    boxes = page.locator(".hparam-checkbox, .metric-checkbox")
    columns = [name.strip() for name in boxes.all_inner_texts()]
    assert {"seed", "start/f1", "test/f1", "val/bm25/f1", "reward/total"} <= {*columns}
    assert len(columns) <= 15
    cells = page.locator("vaadin-grid-cell-content")
    board.wait(lambda: "test/f1" in cells.all_inner_texts(), "the table of runs")
    assert "None" not in cells.all_inner_texts()


def test_results_and_transcripts_are_texts(board: Board) -> None:
    page = board.open("text")
    page.get_by_text("results/bm25").first.wait_for()
    table = page.locator("tf-text-loader table").first
    table.wait_for()
    assert "after training" in table.inner_text()
    page.locator("tf-text-loader h4").first.wait_for()
    assert page.locator("tf-text-dashboard img").count() == 0
    assert page.title() != "1"
