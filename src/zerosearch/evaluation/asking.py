"""Puts the questions of a benchmark to an agent, in a way that can be interrupted.

Questions are asked in blocks. A block's answers are kept when all of it are there: a run that is
started again plays whole blocks, so a model in this process sees the same batches as in a run that
nothing disturbed and writes the same tokens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.core.journal import Journal
from zerosearch.evaluation.answers import TIMES, answer_row
from zerosearch.rollout.agent import Agent, lost_episode
from zerosearch.search.engine import SearchEngine
from zerosearch.types import Question

log = logging.getLogger(__name__)


async def ask_all(
    agent: Agent,
    engine: SearchEngine,
    questions: Sequence[Question],
    journal: Journal,
    *,
    block: int,
    max_failed_share: float,
    seed: int,
    on_answers: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Answer what is not in the journal yet.

    Args:
        agent: who answers.
        engine: who is searched.
        questions: what is asked.
        journal: of answers by `id`.
        block: questions under way at a time.
        max_failed_share: share of a block that may fail, for want of an engine or a model or by an
            error of the agent; a block with more is not kept, and the run ends.
        seed: of all draws.
        on_answers: told how many answers a block brought.

    Returns:
        A row per question, in their order; see `answer_row`.

    Raises:
        InputError: too much of a block failed, or the journal is of other questions; names who or
            what, and the remedy.
    """
    for question in questions:
        if question.uid in journal and journal.rows[question.uid]["question"] != question.text:
            raise InputError(
                f"{journal.path} answers another question {question.uid!r}: the benchmark's file "
                "has changed since; set it back, or start a new run"
            )

    async def ask(question: Question) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            played = await agent.play(question, engine, seed=seed, attempt=0)
        except Exception as error:  # whatever it is, the questions beside it are answered
            log.exception("question %r (%s) was not answered", question.uid, question.text)
            played = lost_episode(question, error)
        return answer_row(question, played, time.perf_counter() - started)

    for start in range(0, len(questions), block):
        asked = questions[start : start + block]
        kept = sum(question.uid in journal for question in asked)
        if kept < len(asked):
            started = time.perf_counter()
            rows = await asyncio.gather(*map(ask, asked))
            share = (time.perf_counter() - started) / len(asked)
            _check_failures(rows, max_failed_share)
            for row in rows:
                row[TIMES]["share_of_block_seconds"] = round(share, 6)
                if row["id"] not in journal:  # a kill may have come between two rows
                    journal.append(row)
        on_answers(len(asked))
    return [journal.rows[question.uid] for question in questions]


def _check_failures(rows: Sequence[dict[str, Any]], max_failed_share: float) -> None:
    failed = [row["error"] for row in rows if row["error"] is not None]
    if len(failed) > max_failed_share * len(rows):
        raise InputError(
            f"{len(failed)} of {len(rows)} questions failed, more than "
            f"max_failed_share={max_failed_share:g} allows; the first: {failed[0]}. Fix that and "
            "go on with resume=<run folder>: the answers before these are kept"
        )
