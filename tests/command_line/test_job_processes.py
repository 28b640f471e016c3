"""Jobs of a sweep as processes: signals, shares of the machine, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zerosearch.command_line.job_processes import JobProcesses

# A job that says when it has begun, ends in order at SIGTERM, and by itself after a while.
JOB = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
assert sys.stdin.read() == "", "nobody types into it"
begun = pathlib.Path(sys.argv[1])
begun.with_name(begun.name + ".tmp").write_text(str(os.getpid()))
begun.with_name(begun.name + ".tmp").rename(begun)
time.sleep(float(sys.argv[2]))
"""


def job(begun: Path, seconds: float) -> list[str]:
    return [sys.executable, "-c", JOB, str(begun), str(seconds)]


def run(*commands: list[str], at_a_time: int = 1) -> tuple[list[int | None], int | None]:
    processes = JobProcesses(at_a_time)
    titles = [str(number) for number in range(len(commands))]
    codes = processes.run([lambda words=words: words for words in commands], titles)
    return codes, processes.stopped_by


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def sent_when_begun(number: signal.Signals, *begun: Path) -> Iterator[None]:
    """Within, a signal comes to this process when jobs have begun."""

    def send() -> None:
        wait_for(*begun)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield
    thread.join(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_job_ends_in_order_when_its_sweep_is_told_to_stop(
    number: signal.Signals, tmp_path: Path
) -> None:
    before, begun, later = signal.getsignal(number), tmp_path / "begun", tmp_path / "later"
    with sent_when_begun(number, begun):
        assert run(job(begun, 60), job(later, 0)) == ([7, None], number)
    assert signal.getsignal(number) is before and not later.exists()


def test_jobs_side_by_side_all_end_in_order(tmp_path: Path) -> None:
    begun = [tmp_path / name for name in "abc"]
    with sent_when_begun(signal.SIGTERM, *begun[:2]):
        commands = [job(each, 60) for each in begun]
        assert run(*commands, at_a_time=2) == ([7, 7, None], signal.SIGTERM)
    for each in begun[:2]:
        with pytest.raises(ProcessLookupError):
            os.kill(int(each.read_text()), 0)


def test_a_job_that_is_killed_takes_nothing_along(tmp_path: Path) -> None:
    killed, begun = tmp_path / "killed", [tmp_path / name for name in "abc"]

    def kill() -> None:
        wait_for(killed)
        os.kill(int(killed.read_text()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    commands = [job(killed, 60), *(job(each, 0) for each in begun)]
    assert run(*commands, at_a_time=2) == ([-9, 0, 0, 0], None)


def test_what_nohup_lets_a_sweep_ignore_reaches_no_job(tmp_path: Path) -> None:
    before, begun = signal.signal(signal.SIGHUP, signal.SIG_IGN), tmp_path / "begun"
    try:
        with sent_when_begun(signal.SIGHUP, begun):
            assert run(job(begun, 0.5)) == ([0], None)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_job_ends_in_order_when_its_sweep_is_killed(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    watched = "from zerosearch.command_line.job_processes import end_with_sweep\n"
    watched += JOB.replace("assert", "end_with_sweep()\nassert")
    sweep = "import sys; from zerosearch.command_line.job_processes import JobProcesses\n"
    sweep += "JobProcesses(2).run([lambda: [sys.executable, '-c', *sys.argv[1:]]], ['x'])"
    words = [sys.executable, "-c", sweep, watched, str(begun), "60"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(begun)
        process.kill()
    number, deadline = int(begun.read_text()), time.monotonic() + 20
    while Path(f"/proc/{number}").exists() and "Z" not in status(number):
        assert time.monotonic() < deadline, "the job goes on alone"
        time.sleep(0.05)


def status(number: int) -> str:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_lines_of_jobs_side_by_side_say_whose_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    say = [sys.executable, "-c", r"import sys; print('one\x1b[2J'); print('two', file=sys.stderr)"]
    assert run(say, say, at_a_time=2) == ([0, 0], None)
    said = sorted(capfd.readouterr().out.splitlines())
    assert said == ["[0] one\\x1b[2J", "[0] two", "[1] one\\x1b[2J", "[1] two"]
