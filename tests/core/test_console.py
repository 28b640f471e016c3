"""How a log looks on the console."""

from __future__ import annotations

import logging
import re

import pytest

from zerosearch.core import progress
from zerosearch.core.console import ConsoleFormatter, ConsoleHandler
from zerosearch.core.progress import progress_bar
from zerosearch.core.text import duration


@pytest.fixture
def log() -> logging.Logger:
    made = logging.Logger("zerosearch.some.module")
    made.addHandler(ConsoleHandler())
    return made


def test_the_console_shows_the_time_and_a_level_from_warnings_on(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.info("step %d/%d", 1, 2)
    log.warning("odd")
    said, warned = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d step 1/2", said)
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING odd", warned)


def test_colours_are_for_terminals() -> None:
    record = logging.LogRecord("a", logging.ERROR, "a.py", 1, "bad", None, None)
    assert "\x1b[31mERROR\x1b[0m bad" in ConsoleFormatter(colours=True).format(record)
    assert "\x1b" not in ConsoleFormatter().format(record)


def test_a_long_work_that_is_not_on_a_terminal_has_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar("documents", 10, done=2) as advance:
        for _ in range(8):
            now[0] += 20.0
            advance(1)
    with progress_bar("answers", 512) as advance:  # by batches: the first one of a batch is early
        for now[0] in (200.0, 240.0, 280.0):
            advance(1)
            advance(127)
    assert caplog.messages == [
        "documents: 4 of 10, 2 min left",
        "documents: 6 of 10, 1 min left",
        "documents: 8 of 10, 40 s left",
        "answers: 1 of 512",
        "answers: 129 of 512, 4 min left",
        "answers: 257 of 512, 2 min left",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (59, "59 s"), (61, "1 min"), (5400, "1.5 h"), (3 * 86400, "3.0 days")],
)
def test_times_are_said_in_one_unit(seconds: float, said: str) -> None:
    assert duration(seconds) == said
