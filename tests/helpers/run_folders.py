"""Run folders as a training leaves them, written directly: what a report reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from zerosearch.callbacks.transcript_text import transcript_json
from zerosearch.core.sweep_folder import plan_jobs, read_job
from zerosearch.reward.rubric import Rubric
from zerosearch.training.step_record import StepRecord
from zerosearch.types import Document, Question, SearchResult, Trajectory, Turn

SEARCH = "<think>Who was it?</think><search>capital of Italy</search>"


def episode(
    *,
    uid: str = "geo:1",
    question: str = "Capital of Italy?",
    golden: str = "Rome",
    answer: str | None = "Rome",
    document: str | None = "The capital is Rome.",
    noisy: bool | None = False,
    group: int = 0,
    sibling: int = 0,
) -> Trajectory:
    """An episode with a search, unless there is no document, and an answer, unless it is None."""
    turns = []
    if document is not None:
        result = SearchResult(documents=(Document(text=document),), requested=1, noisy=noisy)
        read = f"\n<information>\nDoc 1: {document}\n</information>\n"
        turns.append(
            Turn(
                text=SEARCH,
                action="search",
                query="capital of Italy",
                result=result,
                observation=read,
                sampled_tokens=9,
                inserted_tokens=7,
            )
        )
    said = "I do not know" if answer is None else f"<answer>{answer}</answer>"
    turns.append(Turn(text=said, action="invalid" if answer is None else "answer"))
    asked = Question(uid=uid, text=question, golden_answers=(golden,))
    trajectory = Trajectory(
        question=asked, group=group, sibling=sibling, prompt_ids=[1], turns=turns
    )
    trajectory.end("eos" if answer is None else "answer")
    return trajectory


def with_tokens(trajectory: Trajectory) -> Trajectory:
    """The same episode with a token per character, each less likely than the one before it."""
    for turn in trajectory.turns:
        ids = [ord(each) for each in turn.text]
        turn.sampled_tokens, read = len(ids), turn.inserted_tokens
        trajectory.response_ids += ids + [0] * read
        trajectory.sampled += [True] * len(ids) + [False] * read
        trajectory.logprobs += [-n / 10 for n in range(len(ids))] + [0.0] * read
    return trajectory


def write_transcripts(run: Path, phase: str, step: int, trajectories: Sequence[Trajectory]) -> None:
    """A file of transcripts, with the lines that the callback writes."""
    record = StepRecord(
        step=step,
        phase=phase,
        metrics={},
        trajectories=list(trajectories),
        scores=[Rubric().score(each) for each in trajectories],
        advantages=[0.5 - each.sibling for each in trajectories] if phase == "train" else [],
        noise_probability=0.25,
        entropies={each.key: [2.0] * len(each.response_ids) for each in trajectories},
    )
    file = run / "transcripts" / phase / f"step_{step:06d}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(transcript_json(record, i, lambda ids: "".join(map(chr, ids))))
        for i in range(len(trajectories))
    ]
    file.write_text("".join(f"{line}\n" for line in lines))


def write_run(
    folder: Path,
    *,
    rows: Sequence[Mapping[str, float]] = (),
    summary: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Metrics, summary and configuration of a run; returns its folder."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(dict(config or {})))
    (folder / "summary.json").write_text(json.dumps({"status": "completed", **(summary or {})}))
    names = sorted({name for row in rows for name in row})
    lines = [[str(row.get(name, "")) for name in names] for row in rows]
    numbered = [["step", *names], *([str(n), *line] for n, line in enumerate(lines))]
    (folder / "metrics.csv").write_text("".join(",".join(line) + "\n" for line in numbered))
    return folder


def scored(f1: float) -> dict[str, Any]:
    """A summary with an F1 before and after training."""
    bounds = {"test/bm25/f1_low": f1 - 0.1, "test/bm25/f1_high": f1 + 0.1}
    return {"start/bm25/f1": 0.1, "test/bm25/f1": f1, "test/bm25/count": 8, **bounds}


def make_sweep(
    folder: Path,
    axes: Mapping[str, Sequence[str]],
    scores: Sequence[float],
    endings: Mapping[int, Mapping[str, Any]] | None = None,
) -> Path:
    """Every combination as a job with its score; `endings` are the summaries of those that differ,
    empty for one that has not begun.
    """
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    given = [["x=1", *(f"{k}={v}" for k, v in each.items())] for each in combinations]
    names = [str(number) for number in range(len(combinations))]
    for name, overrides, f1 in zip(names, given, scores, strict=True):
        summary = (endings or {}).get(int(name), scored(f1))
        if summary:
            rows = [
                {"reward/total": f1 / 2, "rollout/searches": 1.0, "curriculum/noise_probability": n}
                for n in (0.0, 0.5)
            ]
            write_run(folder / name, rows=rows, summary=summary, overrides=overrides)
    listed = zip(names, given, combinations, strict=True)
    plan_jobs(folder, [read_job(folder / name, o, own) for name, o, own in listed])
    return folder
