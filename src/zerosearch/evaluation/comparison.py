"""Whether two methods that answered the same questions differ, question by question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zerosearch.core.errors import InputError
from zerosearch.core.tables import Cells
from zerosearch.data.json_text import parse_json
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
        InputError: there are none, or the questions or their golden answers differ; says how many,
            and names one.
    """
    ours = {row["id"]: row for row in first}
    theirs = {row["id"]: row for row in second}
    lone = sorted(ours.keys() ^ theirs.keys())
    if lone:
        raise InputError(
            f"of {len(ours)} and {len(theirs)} questions {len(lone)} stand in only one of the two, "
            f"such as {lone[0]!r}: compare evaluations of the same benchmark with the same limit"
        )
    if not ours:
        raise InputError("no question was answered: give finished evaluations")
    for key, row in ours.items():
        for name in ("question", "golden_answers"):
            if row[name] != theirs[key][name]:
                raise InputError(
                    f"question {key!r} has {row[name]!r:.80} and {theirs[key][name]!r:.80} as "
                    f"'{name}': the files of questions were not the same, evaluate one of the two "
                    "anew"
                )
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
        InputError: there is no such run, method or phase, the run has several, or a row is damaged
            or stands twice; names file and line.
    """
    run, method = place, ""
    if not Path(place).is_dir() and ":" in place:  # which a folder may have in its name
        run, _, method = place.rpartition(":")
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
    return {name: _rows(files) for name, files in sorted(found[method].items())}


def _rows(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of all files, each question once."""
    rows: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    for file in files:
        lines = file.read_bytes().decode(errors="replace").split("\n")
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            row, place = _as_answer(parse_json(line, str(file), number)), f"{file}, line {number}"
            if row is None:
                raise InputError(
                    f"{place}: no answered question with {', '.join(SCORES)} between 0 and 1: "
                    f"{line!r:.60}; evaluate again, or take the line out"
                )
            if row["id"] in rows:
                raise InputError(
                    f"{place}: question {row['id']!r} stands in {places[row['id']]}, too, and "
                    "would count once: remove what is of another evaluation"
                )
            rows[row["id"]], places[row["id"]] = row, place
    return [*rows.values()]


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


def _as_answer(row: Any) -> dict[str, Any] | None:
    """A row of answers; one of transcripts, too, in which an episode that failed has no score.

    None where it is no such row.
    """
    if not isinstance(row, dict) or not {"question", "golden_answers", *SCORES} <= row.keys():
        return None
    if "uid" in row:
        row = {**row, "id": row["uid"], **{name: row[name] or 0.0 for name in SCORES}}
    scores = [row[name] for name in SCORES]
    known = all(isinstance(value, int | float) and 0 <= value <= 1 for value in scores)
    return row if known and isinstance(row.get("id"), str) else None


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
