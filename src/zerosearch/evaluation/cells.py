"""From answers to the numbers of a table's cell."""

from __future__ import annotations

import numpy as np

from zerosearch.evaluation.answers import TIMES, AnswerRows
from zerosearch.evaluation.official import Scorer, official_scores
from zerosearch.reward.metrics import AnswerMetrics


def cell_metrics(rows: AnswerRows, scorer: Scorer | None = None) -> dict[str, float]:
    """What a method reached on a benchmark; equal runs give equal numbers.

    Args:
        rows: of `answer_row`, at least one.
        scorer: the benchmark's official one, where it has one.

    Returns:
        `em`, `cover_em`, `f1` with `_low` and `_high` (95% bootstrap); shares `answered` and
        `failed` (of questions), `failed_searches` and `empty_searches` (of searches); per question
        `searches`, `sampled_tokens` and `cost_usd`; `count`; with a scorer `official_em` and
        `official_f1`.
    """
    metric = AnswerMetrics()
    for row in rows:
        metric.update(row["answer"], row["golden_answers"], failed=row["error"] is not None)
    scores = {name: float(value) for name, value in metric.compute().items()}
    if scorer is not None:
        found = [official_scores(scorer, row["answer"], row["golden_answers"]) for row in rows]
        scores["official_em"] = sum(em for em, _ in found) / len(rows)
        scores["official_f1"] = sum(f1 for _, f1 in found) / len(rows)
    searches = sum(row["searches"] for row in rows)
    failed = sum(row["failed_searches"] for row in rows)
    return scores | {
        "searches": searches / len(rows),
        "failed_searches": failed / max(1, searches + failed),
        "empty_searches": sum(row["empty_searches"] for row in rows) / max(1, searches),
        "sampled_tokens": sum(row["sampled_tokens"] for row in rows) / len(rows),
        "cost_usd": sum(row["cost_usd"] for row in rows) / len(rows),
    }


def cell_times(rows: AnswerRows) -> dict[str, float]:
    """The clock of a cell.

    Args:
        rows: of a journal that `ask_all` wrote, at least one. One that was resumed holds the time
            of the answers that were kept, not the time between a kill and the next start.

    Returns:
        `episode_s_*`: latency, the seconds from the start of an episode to its answer, while all
        others of its block are under way (mean, median, 95th percentile); `search_s_*`: the same of
        a search; `s_per_question` and `questions_per_s`: throughput, the seconds of all blocks
        over their questions, and its inverse.
    """
    episodes = [row[TIMES]["seconds"] for row in rows]
    searches = [seconds for row in rows for seconds in row[TIMES]["search_seconds"]] or [0.0]
    # rows of a run that was begun by an older version say nothing of their block
    shares = [row[TIMES].get("share_of_block_seconds", np.nan) for row in rows]
    share = float(np.mean(shares))
    return {
        f"{name}_{kind}": value
        for name, seconds in (("episode_s", episodes), ("search_s", searches))
        for kind, value in (
            ("mean", float(np.mean(seconds))),
            ("p50", float(np.percentile(seconds, 50))),
            ("p95", float(np.percentile(seconds, 95))),
        )
    } | {"s_per_question": share, "questions_per_s": 1 / np.maximum(share, 1e-6)}
