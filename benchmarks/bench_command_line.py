"""How long answers take that need nothing loaded: help, a wrong name, a wrong value.

Run:  python benchmarks/bench_command_line.py [--runs 9] [--help]

Whole processes, `python -m zerosearch`, one after the other; the first, which may read files from
the disk, is left out. Least, median, most. `zerosearch --help` is to take less than 0.5 s.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

ANSWERS = (["--help"], ["trian"], ["train", "--help"], ["train", "seed=word"])


def seconds(words: list[str], folder: str) -> float:
    """Of one process, whatever it answers."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "zerosearch", *words], cwd=folder, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        for words in ANSWERS:
            taken = [seconds(words, folder) for _ in range(1 + runs)][1:]
            spread = f"{min(taken):.2f} {statistics.median(taken):.2f} {max(taken):.2f}"
            print(f"zerosearch {' '.join(words):<16} {spread} s")


if __name__ == "__main__":
    main()
