"""Two writers in one run folder, one journal, one cache, one file: neither loses anything."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from scripts.attack.tally import Tally, leave
from scripts.attack.whole_run import assert_same, make_whole_run
from tests.helpers.processes import Forked
from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.core.journal import Journal
from zerosearch.search.store import TextStore

ROWS = 300


def attack(folder: Path, *, rows: int = ROWS) -> Tally:
    """Let two processes write to each at once."""
    tally = Tally(what="two writers")
    with tally.attempt("a run folder"):
        _runs(folder / "runs")
    with tally.attempt("a journal"):
        _journal(leave(folder / "journal") / "rows.jsonl")
    for name, work in (("a cache", _cache), ("a file", _file)):
        with tally.attempt(name):
            place = leave(folder / name.replace(" ", "_"))
            context = multiprocessing.get_context("forkserver")
            writers = [context.Process(target=work, args=(place, who, rows)) for who in "ab"]
            for writer in writers:
                writer.start()
            codes = [_joined(writer) for writer in writers]
            assert codes == [0, 0], f"the writers ended with {codes}"
            work(place, "c", rows)
    return tally


def _joined(writer: BaseProcess) -> int | None:
    writer.join(120)
    return writer.exitcode


def _runs(folder: Path) -> None:
    whole = make_whole_run(folder)
    place = folder / "shared"
    first = Forked("train", *whole.words, f"hydra.run.dir={place}")
    while not (place / "checkpoints" / "last.ckpt").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.kill()
    first.wait()
    both = [Forked("train", f"resume={place}") for _ in range(2)]
    codes = sorted(each.wait() for each in both)
    said = "".join("".join(each.communicate()) for each in both)
    assert codes == [0, 1], f"exit codes {codes}"
    assert "is writing to this folder" in said and "Traceback" not in said, said[-500:]
    assert_same(place, whole)


def _journal(path: Path) -> None:
    with Journal(path, key="id") as journal:
        journal.append({"id": "a"})
        try:
            Journal(path, key="id")
        except InputError as error:
            assert "another process is writing" in str(error)
        else:
            raise AssertionError("there were two writers")
        journal.append({"id": "b"})
    with Journal(path, key="id") as journal:
        assert [*journal.rows] == ["a", "b"], "rows were lost"


def _cache(folder: Path, who: str, rows: int) -> None:
    """Add rows that both add, in other words; or as "c" look at them."""
    store = TextStore(folder, size_gib=1.0, changes=True)
    for number in range(rows):
        if who == "c":
            assert store.get(str(number)) in (f"a {number}", f"b {number}"), f"row {number}"
        else:
            kept = store.add(str(number), f"{who} {number}")
            assert kept == store.get(str(number)), "the two writers read different rows"


def _file(folder: Path, who: str, rows: int) -> None:
    """Replace a file that both replace, and read it whole each time; or as "c" look at the rest."""
    path = folder / "file"
    if who == "c":
        assert [each.name for each in folder.iterdir()] == ["file"], "something was left"
        return
    for _ in range(rows // 3):
        with replacing(path) as file:
            file.write(who.encode() * 20_000)
            file.write(who.encode() * 20_000)
        found = path.read_bytes()
        assert found in (b"a" * 40_000, b"b" * 40_000), "a part of a file was read"
