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

ANSWERS = "answers"  # in a run folder
SCORES = ("em", "cover_em", "f1")
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
    """Rows by benchmark of `RUN` or `RUN:METHOD`.

    Raises:
        InputError: there is no such run or method, or the run has several.
    """
    run, _, method = place.partition(":")
    root = Path(run) / ANSWERS
    methods = sorted({str(path.parent.relative_to(root)) for path in root.rglob("*.jsonl")})
    if not methods:
        raise InputError(f"{run} holds no answers/: give the run folder of a finished evaluation")
    if not method and len(methods) == 1:
        method = methods[0]
    if method not in methods:
        raise InputError(f"{place}: give {run}:METHOD with one of {', '.join(methods)}")
    return {
        path.stem: [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
        for path in sorted((root / method).glob("*.jsonl"))
    }


def comparison_table(first: str, second: str) -> Cells:
    """A line per benchmark and score.

    Raises:
        InputError: as `answers_of` and `compare`, or no benchmark is in both.
    """
    ours, theirs = answers_of(first), answers_of(second)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise InputError(f"no benchmark is in both: {sorted(ours)} there, {sorted(theirs)} here")
    cells = [["benchmark", "score", "first", "second", "difference", "95%", "p", "wins : losses"]]
    for name in shared:
        cells += [[name, *_cells(each)] for each in compare(ours[name], theirs[name])]
    return cells


def _cells(found: Difference) -> list[str]:
    return [
        found.score,
        f"{100 * found.first:.1f}",
        f"{100 * found.second:.1f}",
        f"{100 * (found.second - found.first):+.1f}",
        f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]",
        f"{found.p_value:.4f}",
        f"{found.wins} : {found.losses}",
    ]
