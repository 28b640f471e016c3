"""Whether two methods that answered the same questions differ, question by question."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zerosearch.core.errors import InputError
from zerosearch.core.tables import Cells
from zerosearch.reward.metrics import bootstrap_interval

ANSWERS, TRANSCRIPTS = "answers", "transcripts"  # in a run folder: of evaluate, of train
TESTED = "test"  # the phase of a training that is meant where none is named
STEP = len("step_000000")  # what the names of transcripts begin with
SCORES = {"em": "EM", "cover_em": "cover EM", "f1": "F1"}  # in rows, and to people
DRAWS = 10_000
_CHUNK = 500


@dataclass(kw_only=True, slots=True, frozen=True)
class Difference:
    """Second minus first, of one score, over the questions that both answered."""

    score: str
    first: float
    second: float
    low: float  # 95% interval of the difference
    high: float
    p_value: float  # of the null hypothesis that the two are exchangeable
    wins: int  # questions on which the second scores higher
    losses: int


def compare(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], *, seed: int = 0
) -> list[Difference]:
    """Paired differences of the scores.

    The interval is the percentile bootstrap over questions; the p-value that of the two-sided
    paired randomisation test, recommended for evaluations of retrieval by Smucker, Allan and
    Carterette (CIKM 2007), with `DRAWS` draws, or the exact one (McNemar's) where every difference
    is -1, 0 or 1.

    Args:
        first: rows of `answer_row`.
        second: rows of the same questions.
        seed: of bootstrap and test.

    Raises:
        InputError: the questions differ; says how many, and names one.
    """
    ours = {row["id"]: row for row in first}
    theirs = {row["id"]: row for row in second}
    lone = sorted(ours.keys() ^ theirs.keys())
    if lone or not ours:
        raise InputError(
            f"{len(lone)} questions stand in only one of the two, such as {lone[:1]}: compare "
            "evaluations of the same benchmark with the same limit"
        )
    changed = [key for key in ours if ours[key]["question"] != theirs[key]["question"]]
    if changed:
        raise InputError(f"question {changed[0]!r} is another in each: the files were not the same")
    return [_difference(name, ours, theirs, seed) for name in SCORES]


def _difference(
    name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], seed: int
) -> Difference:
    pairs = torch.tensor(
        [[float(ours[key][name]), float(theirs[key][name])] for key in sorted(ours)],
        dtype=torch.float64,
    )
    change = pairs[:, 1] - pairs[:, 0]
    low, high = bootstrap_interval(change[:, None], resamples=DRAWS, seed=seed)
    first, second = pairs.mean(dim=0).tolist()
    wins, losses = int((change > 0).sum()), int((change < 0).sum())
    whole = bool(((change == 0) | (change.abs() == 1)).all())
    return Difference(
        score=name,
        first=first,
        second=second,
        low=float(low[0]),
        high=float(high[0]),
        p_value=mcnemar(wins, losses) if whole else randomisation(change, seed),
        wins=wins,
        losses=losses,
    )


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value that wins and losses are equally likely (McNemar 1947)."""
    total = wins + losses
    tail = sum(math.comb(total, count) for count in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)


def randomisation(change: torch.Tensor, seed: int) -> float:
    """Two-sided p-value that the signs of paired differences [N] are arbitrary."""
    moved = change[change != 0]
    generator = torch.Generator().manual_seed(seed)
    observed, extreme = float(moved.sum().abs()), 0
    for start in range(0, DRAWS, _CHUNK):
        draws = min(_CHUNK, DRAWS - start)
        flips = torch.randint(2, (draws, len(moved)), generator=generator) * 2 - 1
        sums = (flips.double() @ moved).abs()
        extreme += int((sums >= observed - 1e-9).sum())
    return (extreme + 1) / (DRAWS + 1)  # the observed assignment is one of them


def answers_of(place: str) -> dict[str, list[dict[str, Any]]]:
    """Rows by benchmark of `RUN` or `RUN:METHOD`; by engine of `RUN:PHASE` of a training.

    Raises:
        InputError: there is no such run, method or phase, or the run has several.
    """
    run, _, method = place.partition(":")
    found = _files(Path(run))
    if not found:
        raise InputError(
            f"{run} holds no answers/ and no transcripts/ of an evaluation: give the run folder of "
            "a finished evaluation or training"
        )
    if not method:
        method = next(iter(found)) if len(found) == 1 else TESTED
    if method not in found:
        raise InputError(f"{place}: give {run}:NAME with one of {', '.join(sorted(found))}")
    return {
        name: [
            _as_answer(json.loads(line))
            for file in files
            for line in file.read_bytes().split(b"\n")
            if line
        ]
        for name, files in sorted(found[method].items())
    }


def _files(run: Path) -> dict[str, dict[str, list[Path]]]:
    """By method and benchmark, or by phase and engine: of each phase the last one, all ranks."""
    found: dict[str, dict[str, list[Path]]] = {}
    for file in (run / ANSWERS).rglob("*.jsonl"):
        method = str(file.parent.relative_to(run / ANSWERS))
        found.setdefault(method, {})[file.stem] = [file]
    for engine in (run / TRANSCRIPTS).glob("*/*/"):
        files = sorted(engine.glob("*.jsonl"))
        last = [file for file in files if file.name[:STEP] == files[-1].name[:STEP]]
        if last:
            found.setdefault(engine.parent.name, {})[engine.name] = last
    return found


def _as_answer(row: dict[str, Any]) -> dict[str, Any]:
    """A row of answers; one of transcripts, too, in which an episode that failed has no score."""
    if "uid" not in row:
        return row
    return {**row, "id": row["uid"], **{name: row[name] or 0.0 for name in SCORES}}


def comparison_table(first: str, second: str) -> Cells:
    """A line per benchmark, or engine of a training, and score.

    Raises:
        InputError: as `answers_of` and `compare`, or no benchmark is in both.
    """
    ours, theirs = answers_of(first), answers_of(second)
    shared = [name for name in ours if name in theirs]
    if not shared:
        had = [
            f"{place} has {', '.join(rows)}" for place, rows in ((first, ours), (second, theirs))
        ]
        raise InputError(
            f"no benchmark, or engine of a training, is in both: {' and '.join(had)}; compare two "
            "evaluations, or two trainings"
        )
    cells = [["on", "n", "score", "1st", "2nd", "change", "95%", "p", "won, lost"]]
    for name in shared:
        count = str(len({row["id"] for row in ours[name]}))
        cells += [[name, count, *_cells(each)] for each in compare(ours[name], theirs[name])]
    return cells


def _cells(found: Difference) -> list[str]:
    return [
        SCORES[found.score],
        f"{100 * found.first:.1f}",
        f"{100 * found.second:.1f}",
        f"{100 * (found.second - found.first):+.1f}",
        f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]",
        f"{found.p_value:.4f}" if found.p_value >= 0.5e-4 else "<0.0001",
        f"{found.wins}, {found.losses}",
    ]
