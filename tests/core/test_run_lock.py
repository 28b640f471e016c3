"""One writer in a run folder, and files that several writers cannot mix."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zerosearch.core.files import remove_leftovers, replacing
from zerosearch.core.run_lock import LOCK, check_unlocked, locked

HOLD = """
import sys, time
from pathlib import Path
from zerosearch.core.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_told_who_holds_the_folder_until_that_process_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = holder(tmp_path)
    try:
        said = re.escape(f"process {process.pid} on {socket.gethostname()} (since ")
        for take in (lambda: check_unlocked(tmp_path), lambda: locked(tmp_path).__enter__()):
            with pytest.raises(ValueError, match=said):
                take()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locked(tmp_path):
        assert f"process {process.pid} on {socket.gethostname()}" in caplog.text
        assert "did not end in order" in caplog.text
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert (tmp_path / LOCK).read_text() == "", "it ended in order"


def test_a_holder_is_named_where_the_one_before_had_a_longer_name(tmp_path: Path) -> None:
    before = {"process": 2**22, "host": "h" * 99, "since": "2026-11-28 09:30:00"}
    (tmp_path / LOCK).write_text(json.dumps(before))
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_what_a_lock_says_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("[" * 4096)
    with locked(tmp_path):
        pass


def test_a_child_that_outlives_the_writer_does_not_hold_the_folder(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        other = holder(tmp_path)
        other.kill()
        other.wait()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_a_killed_process_was_writing_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step_000004.ckpt.part").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step_000004.ckpt.part" / "0").touch()
    for name in (".summary.json.1234.tmp", "checkpoints/.last.ckpt.link", "notes.tmp", ".hidden"):
        (tmp_path / name).touch()
    with locked(tmp_path):
        found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"checkpoints", "notes.tmp", ".hidden", LOCK}
    remove_leftovers(tmp_path / "nothing there")


def test_a_file_with_several_writers_is_whole_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "file"
    blocks = [bytes([letter]) * 50_000 for letter in b"ab"]

    def write(block: bytes) -> None:
        for _ in range(40):
            with replacing(path) as file:
                file.write(block[:25_000])
                file.flush()
                file.write(block[25_000:])

    threads = [threading.Thread(target=write, args=(block,)) for block in blocks]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_bytes() in blocks
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
