"""A run that is killed at moments of its whole life, and goes on: nothing of it is lost.

Half of the moments are drawn over its time; half over the operations that change files in its
folder, where a kill hurts most: one is killed as it is about to make, rename or remove a file.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from scripts.attack.moments import Moment, kill_at
from scripts.attack.tally import Tally
from scripts.attack.whole_run import WholeRun, assert_same, complete, make_whole_run
from tests.helpers.processes import Forked


def attack(folder: Path, *, kills: int = 20, seed: int = 0) -> Tally:
    """Kill and go on a number of times, each in a folder of its own."""
    tally, whole = Tally(what="a run is killed"), make_whole_run(folder / "whole")
    draw = random.Random(seed)
    for number in range(kills):
        share = (number // 2 + draw.random()) / ((kills + 1) // 2)
        place = folder / f"killed_{number:02d}"
        with tally.attempt(f"kill {number} at {share:.0%} of its life"):
            if number % 2:
                moment = Moment(folder=place, operation=1 + int(share * whole.operations))
                kill_at(moment, "train", *whole.words, f"hydra.run.dir={place}")
            else:
                _kill_after(place, whole, share * whole.seconds)
            complete(place, whole.words)
            assert_same(place, whole)
    return tally


def _kill_after(place: Path, whole: WholeRun, seconds: float) -> None:
    for _ in range(5):  # a machine may have become faster
        running = Forked("train", *whole.words, f"hydra.run.dir={place}")
        time.sleep(seconds)
        running.kill()
        if running.wait() == -signal.SIGKILL:
            return
        shutil.rmtree(place)
        seconds *= 0.8
    raise AssertionError("it was not killed")
