"""Text from outside acts on no terminal, no log and no table."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from zerosearch.answering.events import Ended, Found, Searching, Wrote
from zerosearch.answering.terminal import Screen, as_json
from zerosearch.callbacks.transcript_text import transcript_markdown
from zerosearch.core.shown import clean_logs, csv_cell, from_csv_cell, shown
from zerosearch.core.tables import as_markdown, as_rich
from zerosearch.core.text import whole_characters
from zerosearch.evaluation.tables import (
    Results,
    as_csv,
    as_latex,
    from_csv,
)
from zerosearch.rollout.agent import PlayedEpisode
from zerosearch.simulator.measurement_report import print_summary
from zerosearch.training.step_record import StepRecord
from zerosearch.types import Document, Question, SearchResult, Trajectory, Turn

HOSTILE = [
    "\x1b]0;owned\x07",  # the window's title
    "\x1b]52;c;cm0gLXJm\x07",  # the clipboard
    "\x1b[2J\x1b[1;1H",  # the screen
    "\x9b31m",  # the same from one character
    "\x9d8;;http://evil\x9c",
    "\u202eecalp.exe",  # reads backwards
    "\u2066x\u2069\u200f\u061c",
    "over\rwritten",
    "del\x7f\x08\x08",
    "null\x00",
    "line\u2028break\u2029\x85\x0b\x0c",
    "half \ud83d",
]
ALL = " ".join(HOSTILE)
HARMLESS = "Ünïcode, 日本語, עברית, می\u200cخواهم 👩\u200d🔬 \ttab"


def is_clean(text: str, *, console: bool = False) -> bool:
    return text == shown(text, lines=True) and (console or "\r" not in text)


def on_screen() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=400, color_system=None), file


def episode(text: str, error: str | None = None) -> Ended:
    question = Question(uid="q", text=text, golden_answers=(text,))
    trajectory = Trajectory(question=question, group=0, sibling=0, prompt_ids=[])
    result = SearchResult(documents=(Document(title=text, text=text),), requested=1)
    turn = Turn(text=text, action="search", query=text, result=result, observation=text)
    trajectory.turns.append(turn)
    trajectory.error, trajectory.stop_reason = error, "answer"
    return Ended(played=PlayedEpisode(trajectory=trajectory, answer=text), seconds=1.0)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_it_is_written_out(text: str) -> None:
    found = shown(text)
    assert all(char.isprintable() for char in found) and is_clean(found)
    assert shown(found) == found


def test_other_text_stays_as_it_is() -> None:
    assert shown(HARMLESS) == HARMLESS
    assert shown("a\nb") == "a b" and shown("a\nb", lines=True) == "a\nb"
    assert shown("\x1b[0m\u202e") == r"\x1b[0m\u202e"


def test_a_terminal_shows_an_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = on_screen()
    screen, marked = Screen(console), f"[red]{ALL}[/red]"
    screen.show(Wrote(text=f"{marked}<think>{marked}</think><answer>{marked}"))
    screen.show(Searching(query=marked))
    document = Document(title=marked, text=marked)
    screen.show(Found(query="q", result=SearchResult(documents=(document,), requested=1)))
    screen.show(episode(marked))
    screen.show(episode(marked, error=marked))
    text = file.getvalue()
    assert is_clean(text)
    assert text.count("[red]") == 8, "nothing is taken for markup"


def test_a_line_of_json_says_the_same_and_shows_nothing_else() -> None:
    line = as_json(ALL, episode(ALL))
    assert is_clean(line) and "\n" not in line
    found = json.loads(line)
    assert found["question"] == found["answer"] == ALL
    whole = whole_characters(ALL)  # as every document is made
    assert found["turns"][0]["documents"] == [{"title": whole, "text": whole}]
    assert "日本" in as_json("日本", episode("日本")), "readable where it can be"


def test_a_report_of_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    failed: Any = type("Asked", (), {"failure": ALL})()
    print_summary({}, [], [failed])
    assert r"failed: \x1b]0;owned" in file.getvalue() and is_clean(file.getvalue())


def test_logs_hold_no_more_lines_than_messages(tmp_path: Path) -> None:
    earlier, path = logging.getLogRecordFactory(), tmp_path / "x.log"
    handler, log = logging.FileHandler(path), logging.getLogger("tests.hostile")
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    log.addHandler(handler)
    try:
        clean_logs()
        log.error("%s", ALL)
        log.error("done\n[INFO] completed: F1 1.000")
        try:
            raise ValueError(ALL)
        except ValueError:
            log.exception("lost")
    finally:
        logging.setLogRecordFactory(earlier)
        log.removeHandler(handler)
        handler.close()
    text = path.read_bytes().decode()
    assert is_clean(text) and r"ValueError: \x1b]0;owned" in text
    assert "\n[INFO]" not in text and text.count("\n[ERROR]") == 2


# -- tables ----------------------------------------------------------------------------------------

METRICS = {
    name: 0.5
    for name in ("em", "cover_em", "f1", "searches", "sampled_tokens", "answered", "failed")
} | {f"{name}_{end}": 0.5 for name in ("em", "cover_em", "f1") for end in ("low", "high")}
FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(1)", " =1", "\t=1", "'=1", "''-x"]


def test_cells_that_begin_a_formula_are_texts_and_read_back() -> None:
    for text in FORMULAS:
        cell = csv_cell(text)
        assert cell.startswith("'") and from_csv_cell(cell) == shown(text, lines=True)
    for same in ("a=b", "it's", "'quoted'", "", -0.5, 3):
        assert csv_cell(same) == same and from_csv_cell(same) == same


@pytest.mark.parametrize("name", [*FORMULAS, ALL, 'a,"b"\nc', "a|b", "<script>x</script>"])
def test_a_table_of_others_goes_through_csv(name: str) -> None:
    results = Results(
        benchmarks={name: name}, rows={name: name}, cells={(name, name): {**METRICS, name: 1.0}}
    )
    text = as_csv(results)
    assert is_clean(text)
    for row in csv.reader(io.StringIO(text)):
        assert not any(cell.lstrip()[:1] in ("=", "+", "-", "@") for cell in row if cell)
    safe = shown(name, lines=True)
    assert from_csv(text).rows == {safe: safe} and safe in from_csv(text).cells[safe, safe]


def test_markdown_latex_and_terminal_show_cells_as_they_are() -> None:
    bad = f"a|b\\|c\nd<img src=x> [x](http://evil) ~^{{}}\\input{{x}}%$#&_ [red]r[/] {ALL}"
    cells = [["method", bad], [bad, "1.00"]]
    heading, rule, row = as_markdown(cells).splitlines()
    assert rule == "| --- | --- |" and is_clean(heading)
    for line in (heading, row):  # a pipe after an even number of backslashes ends a cell
        assert len(line.replace(r"\\", "").replace(r"\|", "").split("|")) == 4
        assert "<" not in line and "](" not in line
    latex = as_latex(cells)
    assert is_clean(latex) and latex.count("\n") == 7
    assert r"\textasciitilde{}\textasciicircum{}\{\}\textbackslash{}input\{x\}\%\$\#\&\_" in latex
    console, file = on_screen()
    console.print(as_rich(cells, "title"))
    assert is_clean(file.getvalue()) and "[red]r[/]" in file.getvalue()


def test_transcripts_for_tensorboard_are_clean() -> None:
    trajectory = episode(ALL).played.trajectory
    record = StepRecord(step=1, phase="train", metrics={}, trajectories=[trajectory], scores=[None])
    assert is_clean(transcript_markdown(record, 0))


# -- commands with flags ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("compare", ["{}", "{}:x"]),
        ("export", ["{}", "out"]),
        ("init", ["{}"]),
        ("merge", ["{}"]),
        ("template", ["{}", "--output", "t.j2"]),
    ],
)
def test_what_a_command_ends_with_is_text(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "\x1b]0;owned\x07\u202ecalp\x9b31m"
    folder.mkdir()
    (folder / "my_engine.py").touch()
    monkeypatch.setattr(sys, "argv", [name, *(word.format(folder) for word in words)])
    with pytest.raises(SystemExit) as ended:
        import_module(f"zerosearch.commands.{name}").main()
    said = ended.value.code
    assert isinstance(said, str) and is_clean(said)
    assert r"\x1b]0;owned\x07\u202ecalp\x9b31m" in said
