"""Recorded episodes, and the tuning of a policy on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.source import PolicySource
from zerosearch.reward.answer import extract_answer
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.training.schedule import warmup_schedule
from zerosearch.tuning.datamodule import TuningData
from zerosearch.tuning.episodes import EpisodeFiles, EpisodeSet
from zerosearch.tuning.policy_module import PolicyTuningModule
from zerosearch.tuning.records import RecordedEpisode, RecordedSearch
from zerosearch.types import Document, Trajectory

EPISODE = EpisodeSettings(
    prompt_template="plain",
    max_turns=3,
    top_k=1,
    max_prompt_tokens=64,
    max_turn_tokens=64,
    max_observation_tokens=128,
    max_context_tokens=640,
)


def make_record(
    number: int = 0, searches: int = 1, answer: str | None = "red", **fields: Any
) -> RecordedEpisode:
    """An episode with some searches and an answer."""
    asked = [f"q{turn}" for turn in range(searches)]
    last = [] if answer is None else [f"<think>so</think><answer> {answer} </answer>"]
    settings: dict[str, Any] = {
        "id": f"q:{number}/0",
        "question": f"Which colour has {number}?",
        "golden_answers": ("red",),
        "searches": tuple(
            RecordedSearch(turn=turn, query=query, documents=(Document(text=f"{number} is red."),))
            for turn, query in enumerate(asked)
        ),
        "answer": answer,
        "correct": answer == "red",
        "texts": (*(f"<search> {query} </search>" for query in asked), *last),
    }
    return RecordedEpisode(**{**settings, **fields})


def record_of(trajectory: Trajectory) -> RecordedEpisode:
    """A played episode as `zerosearch collect` keeps it."""
    answer = extract_answer(trajectory.final_text)
    searched = [turn for turn in trajectory.turns if turn.result is not None]
    return RecordedEpisode(
        id=f"{trajectory.question.uid}/{trajectory.sibling}",
        question=trajectory.question.text,
        golden_answers=trajectory.question.golden_answers,
        searches=tuple(
            RecordedSearch(
                turn=place,
                query=turn.query or "",
                documents=turn.result.documents,
                shown=turn.shown,
            )
            for place, turn in enumerate(searched)
            if turn.result is not None
        ),
        answer=answer,
        correct=True,
        texts=tuple(turn.text for turn in trajectory.turns),
    )


def write_episodes(path: Path, records: Sequence[RecordedEpisode]) -> Path:
    path.write_text("".join(json.dumps(each.as_row()) + "\n" for each in records))
    return path


def make_data(path: Path, examples_per_step: int = 6) -> TuningData[EpisodeSet]:
    files = EpisodeFiles(train=str(path), validation_share=0.2, min_searches=0)
    return TuningData(files, examples_per_step=examples_per_step)


def make_module(
    source: PolicySource,
    *,
    steps: int = 4,
    lr: float = 0.01,
    module: type[PolicyTuningModule] = PolicyTuningModule,
    **fields: Any,
) -> PolicyTuningModule:
    settings: dict[str, Any] = {
        "episode": EPISODE,
        "tokens_per_micro_batch": 400,
        "logprob_chunk_tokens": 64,
        **fields,
    }
    return module(
        policy=source,
        generator=TransformersGenerator(),
        optimizer=partial(torch.optim.AdamW, lr=lr),
        schedule=warmup_schedule,
        steps=steps,
        **settings,
    )
