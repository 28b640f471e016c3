"""How long `zerosearch report` takes, how large its page is and how fast it opens.

Run:  python benchmarks/bench_report.py [--trajectories 10000] [--help]

The run is made up: 3 searches an episode, 3 documents each of 60 to 140 words drawn from 20,000 as
words of English are (Zipf), as many as a 7B policy reads, and values of all sampled tokens. Bounds:
built in under 30 s, below 50 MB, opened in under 3 s with its list and first curves there (needs
Chromium and the extra dev).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

GROUP, STEP = 8, 64  # trajectories of a group, of a step


class Writer:
    """Makes up episodes."""

    def __init__(self) -> None:
        self.draw = random.Random(0)
        letters = "etaoinshrdlucmfw"
        self.words = [
            "".join(self.draw.choices(letters, k=self.draw.randint(2, 11))) for _ in range(20_000)
        ]
        self.weights = list(accumulate(1 / rank for rank in range(1, len(self.words) + 1)))

    def document(self) -> str:
        count = self.draw.randint(60, 140)
        return " ".join(self.draw.choices(self.words, cum_weights=self.weights, k=count))

    def turn(self) -> dict[str, Any]:
        documents = [self.document() for _ in range(3)]
        read = "\n".join(f"Doc {n}: {text}" for n, text in enumerate(documents, start=1))
        thought, query = documents[0][:200], documents[1][:40]
        text = f"<think>{thought}</think><search>{query}</search>"
        tokens = self.tokens(text)
        return {
            "text": text,
            "tokens": tokens,
            "action": "search",
            "search": {
                "documents": [{"title": "", "text": text} for text in documents],
                "requested": 3,
                "noisy": self.draw.random() < 0.3,
            },
            "observation": f"\n<information>\n{read}\n</information>\n",
            "sampled_tokens": len(tokens["characters"]),
        }

    def tokens(self, text: str) -> dict[str, list[float]]:
        """Values of tokens of 1 to 6 characters, as `callbacks.transcripts.token_values=null`."""
        lengths: list[float] = []
        while (left := len(text) - int(sum(lengths))) > 0:
            lengths.append(min(left, self.draw.randint(1, 6)))
        values = [[round(self.draw.expovariate(2), 3) for _ in lengths] for _ in range(2)]
        return {
            "characters": lengths,
            "logprobs": [-value for value in values[0]],
            "entropies": values[1],
        }

    def row(self, step: int, index: int) -> dict[str, Any]:
        answer = {"text": "<answer>here</answer>", "action": "answer"}
        return {
            "step": step,
            "phase": "train",
            "uid": f"q{step}/{index // GROUP}",
            "question": f"Where is {self.words[(step * STEP + index // GROUP) % 20_000]}?",
            "golden_answers": ["here"],
            "group": index // GROUP,
            "sibling": index % GROUP,
            "answer": "here",
            "stop_reason": "answer",
            "reward": self.draw.random(),
            "advantage": self.draw.gauss(0, 1),
            "turns": [*(self.turn() for _ in range(3)), answer],
        }


def write_run(folder: Path, count: int) -> None:
    """Transcripts and metrics of steps of 64 trajectories."""
    writer = Writer()
    (folder / "transcripts" / "train").mkdir(parents=True)
    rows = ["step,reward/total,curriculum/noise_probability,loss/entropy"]
    for step in range(-(-count // STEP)):
        size = min(STEP, count - step * STEP)
        lines = [json.dumps(writer.row(step, index)) + "\n" for index in range(size)]
        file = folder / "transcripts" / "train" / f"step_{step:06d}.jsonl"
        file.write_text("".join(lines))
        rows.append(f"{step},{writer.draw.random()},{step / 200},{writer.draw.random()}")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")


def opening(page: Path) -> tuple[float, float, float]:
    """Seconds until the list and the first curve are there; of a search through all texts."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = browser.new_page()
        started = time.perf_counter()
        tab.goto(page.as_uri(), wait_until="commit")
        tab.wait_for_selector("#rows button")
        listed = time.perf_counter() - started
        tab.wait_for_selector("figure[data-drawn]")
        drawn = time.perf_counter() - started
        started = time.perf_counter()
        tab.fill("#filters [name=text]", "no such text")
        tab.wait_for_selector("#found:text('0 of')")
        searched = time.perf_counter() - started
        browser.close()
    return listed, drawn, searched


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trajectories", type=int, default=10_000)
    count = parser.parse_args().trajectories
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        write_run(run, count)
        read = sum(file.stat().st_size for file in run.rglob("*.jsonl"))
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "zerosearch", "report", str(run)], check=True)
        built = time.perf_counter() - started
        page = run / "report.html"
        print(f"{count} trajectories, {read / 1e6:.0f} MB of transcripts", end=": ")
        print(f"built in {built:.1f} s, {page.stat().st_size / 1e6:.1f} MB", end="")
        if shutil.which("chromium") or shutil.which("google-chrome"):
            listed, drawn, searched = opening(page)
            print(f"; opened: list after {listed:.1f} s, curves after {drawn:.1f} s", end="")
            print(f"; all texts searched in {searched:.1f} s", end="")
        print()


if __name__ == "__main__":
    main()
