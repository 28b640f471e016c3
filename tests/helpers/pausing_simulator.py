"""The scripted simulator, with a place where a test can interrupt its run for certain."""

from __future__ import annotations

import os
import time
from pathlib import Path

from zerosearch.simulator.scripted import ScriptedSimulator
from zerosearch.types import SearchRequest, SearchResult

FOLDER, STEPS = "TEST_PAUSE_FOLDER", "TEST_PAUSE_AFTER_STEPS"
PAUSED, GO_ON = "paused", "go_on"


class PausingSimulator(ScriptedSimulator):
    """Halts the process in a search once so many policy steps are in the run's metrics.csv.

    The environment names the run folder and the number of steps; the halt makes the file `paused`
    there and ends with the file `go_on`.
    """

    async def search(self, request: SearchRequest) -> SearchResult:
        if FOLDER in os.environ:
            self._pause(Path(os.environ[FOLDER]), int(os.environ[STEPS]))
        return await super().search(request)

    @staticmethod
    def _pause(folder: Path, steps: int) -> None:
        metrics = folder / "metrics.csv"
        rows = len(metrics.read_text().splitlines()) - 1 if metrics.exists() else 0
        if rows != steps or (folder / GO_ON).exists():
            return
        (folder / PAUSED).touch()
        while not (folder / GO_ON).exists():
            time.sleep(0.01)
