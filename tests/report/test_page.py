"""The page as text: what it is built from, and that nothing of it acts."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.policy_stub import PolicyStub, make_trainer
from tests.helpers.run_folders import episode, write_run, write_transcripts
from tests.helpers.runs import run_here, small_run
from zerosearch.callbacks.metrics_csv import MetricsCsv
from zerosearch.callbacks.transcripts import TranscriptWriter
from zerosearch.commands import report
from zerosearch.report.page import build
from zerosearch.report.run_folder import find_runs

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&<b"


class Tags(HTMLParser):
    """What a browser would make of a page: its tags, and the texts of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def data_of(page: str) -> dict[str, Any]:
    return json.loads(next(text for text in Tags(page).scripts if text.startswith("{")))


def page_of(folder: Path) -> str:
    return build(find_runs([str(folder)]), limit=1000)


def test_a_page_is_built_from_what_the_callbacks_of_a_run_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writers = [TranscriptWriter(tmp_path / "transcripts"), MetricsCsv(tmp_path)]
    module = PolicyStub(4)
    module.extra_metrics = lambda step: {"reward/total": step / 4}
    make_trainer(4, callbacks=writers, val_every=2).fit(module)
    monkeypatch.setattr(sys, "argv", ["zerosearch report", str(tmp_path)])
    report.main()
    data = data_of((tmp_path / "report.html").read_text())
    assert data["trajectories"]["phases"] == ["train", "val/bm25", "val/scripted"]
    assert data["trajectories"]["count"] == 4 * 2 + 2 * 2  # of two engines, twice
    [curve] = data["charts"][0]["series"]
    assert curve["x"] == [1, 2, 3, 4] and curve["y"] == [0, 0.25, 0.5, 0.75]
    assert str(tmp_path / "report.html") in capsys.readouterr().out


@pytest.mark.slow
def test_a_page_is_built_from_a_training(tmp_path: Path, trains_here: None) -> None:
    folder = tmp_path / "run"
    run_here(folder, *small_run(tmp_path), "policy_steps=2")
    data = data_of(page_of(folder))
    titles = [chart["title"] for chart in data["charts"]]
    assert titles[:2] == ["Reward and noise", "F1 on held-out questions"]
    assert {"Entropy", "KL divergence", "Time by stage", "Memory"} <= {*titles}
    assert data["trajectories"]["count"] == 2 * 2 * 8 + 5 * 3 * 2  # training; 3 times, 2 engines


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A run in which everything that others write is hostile."""
    summary = {
        "status": "failed",
        "error": HOSTILE,
        "command": HOSTILE,
        "choices": {"model": HOSTILE},
    }
    rows = [{"reward/total": 0.5, "stop/answer": 1.0}]
    folder = write_run(tmp_path / "<b>run", rows=rows, summary=summary, overrides=[f"x={HOSTILE}"])
    write_transcripts(
        folder,
        "train",
        0,
        [episode(question=HOSTILE, golden=HOSTILE, answer=HOSTILE, document=HOSTILE)],
    )
    return folder


def test_nothing_that_others_wrote_is_a_tag(hostile: Path, tmp_path: Path) -> None:
    harmless = write_run(tmp_path / "run", rows=[{"reward/total": 0.5, "stop/answer": 1.0}])
    write_transcripts(harmless, "train", 0, [episode()])
    page, plain = Tags(page_of(hostile)), Tags(page_of(harmless))
    kinds = {tag for tag, _ in page.tags}
    assert kinds <= {tag for tag, _ in plain.tags} | {"dt", "dd"} and "img" not in kinds
    assert not [name for _, own in page.tags for name in own if name.startswith("on")]
    count = [sum(tag == "script" for tag, _ in each.tags) for each in (page, plain)]
    assert count[0] == count[1]
    data = data_of(page_of(hostile))
    assert data["trajectories"]["questions"][0]["text"] == HOSTILE


def test_a_page_names_its_scripts_and_reaches_nothing(hostile: Path) -> None:
    page = page_of(hostile)
    tags = Tags(page)
    [policy] = [own["content"] or "" for tag, own in tags.tags if own.get("http-equiv")]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy and "unsafe-eval" not in policy
    assert "script-src 'unsafe" not in policy and policy.count("'sha256-") == 8
    outside = [own for _, own in tags.tags if own.get("src") or "http" in (own.get("href") or "")]
    assert outside == []


def test_equal_runs_give_equal_pages(hostile: Path) -> None:
    assert page_of(hostile) == page_of(hostile)


def test_a_page_says_how_the_run_ended_and_goes_on(hostile: Path) -> None:
    (hostile / "checkpoints").mkdir()
    text = re.sub(r"<[^>]+>", " ", page_of(hostile).partition("<script")[0])
    assert "failed: &lt;/script&gt;" in text and "zerosearch train resume=" in text


def test_a_wrong_folder_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["zerosearch report", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="there is no folder"):
        report.main()
