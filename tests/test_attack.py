"""The families of `make attack`, each in small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the servers need zerosearch[retriever]")

from scripts.attack import files, fuzz, growth, kills, page, replies, requests, writers
from scripts.attack.tally import Tally, watched
from tests.helpers.configs import ROOT


def survived(tally: Tally, tried: int) -> None:
    assert tally.lost == [] and tally.ran == 0 and tally.tried >= tried


def test_requests(tmp_path: Path) -> None:
    survived(requests.attack(tmp_path, requests=60), 60)


@pytest.mark.slow
def test_files_and_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "SERPER_API_KEY"):
        monkeypatch.setenv(name, "x")  # put back what the attacks set
    survived(files.attack(tmp_path), 20)
    survived(replies.attack(tmp_path, replies=20), 80)


@pytest.mark.slow
def test_kills_and_writers(tmp_path: Path) -> None:
    survived(kills.attack(tmp_path / "kills", kills=4), 4)
    survived(writers.attack(tmp_path / "writers", rows=30), 4)


@pytest.mark.slow
def test_growth_and_damaged_files(tmp_path: Path) -> None:
    survived(growth.attack(tmp_path / "growth", steps=24), 6)
    survived(fuzz.attack(tmp_path / "fuzz", examples=3), 60)


@pytest.mark.slow
def test_disks_and_descriptors_where_they_can_be_had(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.attack", "disks", "descriptors", "--share", "0.2"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]


def test_what_is_raised_is_lost_and_counted() -> None:
    def attack() -> Tally:
        tally = Tally(what="x")
        for number in range(3):
            with tally.attempt(f"number {number}"):
                if number == 1:
                    raise ValueError("one")
        return tally

    tally = watched(attack)
    assert (tally.tried, tally.survived) == (3, 2) and tally.lost == ["number 1: ValueError: one"]
    assert page.has_failed([tally]) and not page.has_failed([Tally(what="y", tried=2)])
    assert page.has_failed([Tally(what="y", ran=1)])
    assert page.has_failed([Tally(what="y", peak_mib=2000.0)])
    assert page.shown(Tally(what="y", tried=2000, peak_mib=1.6, seconds=2.4)) == (
        "| y | 2,000 | 2,000 | 0 | 0 | 2 | 2 |"
    )


def test_the_page_keeps_what_stands_round_its_table(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    file = tmp_path / "page.md"
    file.write_text(text)
    page.write(file, [Tally(what="y", tried=1)])
    before, _, after = text.partition(page.BEGIN)
    written = file.read_text()
    assert written.startswith(before + page.BEGIN + "| attack | tried |")
    assert (
        written.endswith(page.END + after.partition(page.END)[2]) and "| y | 1 | 1 | 0 |" in written
    )
    (tmp_path / "other.md").write_text("no place")
    with pytest.raises(SystemExit, match="has no lines"):
        page.write(tmp_path / "other.md", [])
