"""The journal of rows: whole after a kill, refused where it cannot be trusted."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.waiting import wait_until
from zerosearch.core.journal import Journal

WRITER = """
import sys, itertools
from zerosearch.core.journal import Journal
with Journal(sys.argv[1], key="id") as journal:
    for number in itertools.count(len(journal.rows)):
        journal.append({"id": str(number), "text": "x" * 3000})
"""


def test_rows_are_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    with Journal(path, key="id", settings={"seed": 0}) as journal:
        journal.append({"id": "a", "text": "Lyon ünd\nmore"})
        assert "a" in journal and "b" not in journal
    with Journal(path, key="id", settings={"seed": 0}) as journal:
        assert journal.rows == {"a": {"id": "a", "text": "Lyon ünd\nmore"}}
        journal.append({"id": "b"})
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_rows_can_be_put_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with Journal(path, key="id") as journal:
        for name in ("c", "a", "other", "b"):
            journal.append({"id": name, "text": "ü"})
        journal.arrange(["a", "b", "missing", "c"])
        with pytest.raises(ValueError, match="another process is writing to it"):
            Journal(path, key="id")
        journal.append({"id": "d"})
        assert list(journal.rows) == ["a", "b", "c", "other", "d"]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "b", "c", "other", "d"]
    assert rows[0]["text"] == "ü" and [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_line_that_a_kill_cut_short_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a"}\n{"id": "b", "te')
    with Journal(path, key="id") as journal:
        assert list(journal.rows) == ["a"]
        journal.append({"id": "b"})
    assert path.read_text() == '{"id": "a"}\n{"id": "b"}\n'


@pytest.mark.parametrize("arranged", [False, True])
def test_a_row_that_the_disk_cuts_short_leaves_those_before_and_after(
    tmp_path: Path, arranged: bool
) -> None:
    path = tmp_path / "rows.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, key="id") as journal:
        journal.append({"id": "b"})
        journal.append({"id": "a"})
        if arranged:
            journal.arrange(["a", "b"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
        try:
            with pytest.raises(OSError, match="the last row was cut short; free disk space"):
                journal.append({"id": "c", "text": "x" * 100})
            assert "c" not in journal
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        journal.append({"id": "d"})
    with Journal(path, key="id") as journal:
        assert list(journal.rows) == (["a", "b", "d"] if arranged else ["b", "a", "d"])


def test_a_killed_writer_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for _ in range(3):
        before = path.stat().st_size if path.exists() else 0
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        wait_until(lambda: path.exists() and path.stat().st_size > before + 10_000)  # noqa: B023
        writer.kill()
        writer.wait()
    with Journal(path, key="id") as journal:
        assert list(journal.rows) == [str(number) for number in range(len(journal.rows))]
        assert len(journal.rows) > 9


@pytest.mark.parametrize("line", ["no json", "[1]", '{"other": 1}', '"text"'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"id": "a"}}\n{line}\n{{"id": "b"}}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: no row with a field 'id'"):
        Journal(path, key="id")


def test_rows_made_under_other_settings_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with Journal(path, key="id", settings={"model": "a", "seed": 0}):
        pass
    with Journal(path, key="id", settings={"model": "b", "seed": 0}) as journal:  # still empty
        journal.append({"id": "1"})
    with pytest.raises(ValueError, match="made with model='b', and it is 'c' now: set it back"):
        Journal(path, key="id", settings={"model": "c", "seed": 0})
    with pytest.raises(ValueError, match="made with extra=None, and it is 1 now"):
        Journal(path, key="id", settings={"model": "b", "seed": 0, "extra": 1})


def test_settings_within_others_are_named_by_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    engine = {"engine": {"k1": 1.5, "words": {}}}
    with Journal(path, key="id", settings={"search": engine}) as journal:
        journal.append({"id": "1"})
    with pytest.raises(ValueError, match=r"made with search\.engine\.k1=1\.5, and it is 1\.2 now"):
        Journal(path, key="id", settings={"search": {"engine": {"k1": 1.2, "words": {}}}})


def test_settings_that_an_earlier_version_did_not_keep_are_not_compared(tmp_path: Path) -> None:
    path, later = tmp_path / "rows.jsonl", ["agent.chat", "engine"]
    old = {"agent": {"model": "a"}, "engines": 1}
    new = {"agent": {"model": "a", "chat": True}, "engines": 1, "engine": {"k1": 1.5}}
    with Journal(path, key="id", settings=old) as journal:
        journal.append({"id": "1"})
    with Journal(path, key="id", settings=new, later=later):
        pass
    with pytest.raises(ValueError, match=r"made with agent\.model='a', and it is 'b' now"):
        Journal(path, key="id", settings={**new, "agent": {"model": "b"}}, later=later)
    path.unlink()
    with Journal(path, key="id", settings=new, later=later) as journal:
        journal.append({"id": "1"})
    with pytest.raises(ValueError, match=r"made with engine\.k1=1\.5, and it is 1\.2 now"):
        Journal(path, key="id", settings={**new, "engine": {"k1": 1.2}}, later=later)


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with (
        Journal(path, key="id"),
        pytest.raises(ValueError, match="another process is writing to it"),
    ):
        Journal(path, key="id")
    with Journal(path, key="id") as journal:
        journal.append({"id": "1"})
        with pytest.raises(ValueError, match="a row with id='1' already"):
            journal.append({"id": "1"})
