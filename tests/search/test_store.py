"""The file under the cache: shared by processes, whole after a kill, and no way in for code."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.waiting import GUARD_S
from zerosearch.search.store import StoreError, TextStore

DATABASE = "cache.db"


def make_store(folder: Path, **fields: Any) -> TextStore:
    return TextStore(folder, **{"size_gib": 1.0, "changes": True, **fields})


def test_the_first_text_of_a_key_stays(tmp_path: Path) -> None:
    one, other = make_store(tmp_path), make_store(tmp_path)
    assert one.get("key") is None
    assert one.add("key", "first") == "first"
    assert other.add("key", "second") == "first" == other.get("key")
    assert len(one) == 1


def test_the_file_stays_within_its_bound(tmp_path: Path) -> None:
    texts = make_store(tmp_path, size_gib=200_000 / 2**30)
    for number in range(200):
        texts.add(f"key {number}", "text" * 1000)
    assert 10 < len(texts) < 100
    assert (tmp_path / DATABASE).stat().st_size < 400_000
    assert texts.get("key 199") and texts.get("key 0") is None


def test_what_cannot_be_kept_is_given_back_and_said_once_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = make_store(tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as database:
        database.execute("DROP TABLE Cache")
    with caplog.at_level("INFO", logger="zerosearch"):
        assert texts.add("key", "text") == texts.add("other", "text") == "text"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "a text was not kept (no such table" in caplog.records[0].getMessage()
    with pytest.raises(StoreError, match="no such table"):
        texts.get("key")


# -- a file that somebody else has written --------------------------------------------------------


class Trap:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def plant(folder: Path, assignments: str, *values: Any) -> None:
    with sqlite3.connect(folder / DATABASE) as database:
        assert database.execute(f"UPDATE Cache SET {assignments}", values).rowcount == 1


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "trapped")))
    assert (tmp_path / "trapped").exists()


@pytest.mark.parametrize("place", ["value", "file"])
def test_a_planted_pickle_is_not_run(place: str, tmp_path: Path) -> None:
    texts = make_store(tmp_path / "cache")
    texts.add("key", "text")
    trap = pickle.dumps(Trap(tmp_path / "trapped"))
    (tmp_path / "cache" / "trap.val").write_bytes(trap)
    if place == "value":
        plant(tmp_path / "cache", "mode = 4, value = ?", trap)
    else:
        plant(tmp_path / "cache", "mode = 4, value = NULL, filename = ?", "trap.val")
    with pytest.raises(StoreError, match="something else than text"):
        texts.get("key")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("mode", [2, 3])
def test_a_row_cannot_have_files_read(mode: int, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    texts = make_store(tmp_path / "cache")
    texts.add("key", "text")
    plant(tmp_path / "cache", "mode = ?, value = NULL, filename = ?", mode, "../secret")
    with pytest.raises(StoreError, match="something else than text"):
        texts.get("key")


def test_a_row_cannot_have_files_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.touch()
    texts = make_store(tmp_path / "cache", size_gib=100_000 / 2**30)
    texts.add("key", "text")
    plant(tmp_path / "cache", "filename = ?", str(precious))
    for number in range(60):
        texts.add(f"key {number}", "text" * 1000)
    assert texts.get("key") is None, "evicted"
    assert precious.exists()


# -- processes ------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from zerosearch.search import store
from zerosearch.search.store import TextStore

store.BUSY_TIMEOUT_S = 60  # on a busy machine another process may be stopped while it writes
name, folder, count = sys.argv[1:]
texts = TextStore(Path(folder), size_gib=1.0, changes=True)
for number in range(int(count)):
    texts.add(f"{name} {number}", f"{name} {number} " * 100)
    if number == 20:
        print("under way", flush=True)
"""


def start_writer(name: str, folder: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, name, str(folder), str(count)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        text=True,
    )


def test_processes_write_at_once_and_one_is_killed(tmp_path: Path) -> None:
    lasting = [start_writer(name, tmp_path, 300) for name in ("a", "b")]
    killed = start_writer("killed", tmp_path, 1_000_000)
    try:
        assert killed.stdout is not None and killed.stdout.readline() == "under way\n"
        killed.send_signal(signal.SIGKILL)
        assert [process.wait(2 * GUARD_S) for process in lasting] == [0, 0]
    finally:
        for process in (killed, *lasting):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    with sqlite3.connect(tmp_path / DATABASE) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    texts = make_store(tmp_path)
    for name, count in (("a", 300), ("b", 300), ("killed", 20)):
        for number in range(count):
            assert texts.get(f"{name} {number}") == f"{name} {number} " * 100
    assert texts.add("goes", "on") == "on"
