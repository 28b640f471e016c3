"""Optional reward terms beside the answer's: form, retrieval, length, penalties on actions.

The paper trains on F1 alone (arXiv 2505.04588, section 3.4). A term is added in YAML with a weight;
see configs/rubric/shaped.yaml and search_r1pp.yaml. A penalty is 0 or negative, so its weight is
positive.
"""

from __future__ import annotations

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count
from zerosearch.core.text import mentions, normalize_answer
from zerosearch.reward.answer import has_answer
from zerosearch.types import Trajectory


def well_formed(trajectory: Trajectory) -> float:
    """1.0 where every turn is a search or an answer and the last one answers, else 0.0."""
    turns = trajectory.turns
    if not turns or any(turn.action == "invalid" for turn in turns):
        return 0.0
    return float(turns[-1].action == "answer")


def retrieved_answer(trajectory: Trajectory) -> float:
    """1.0 where some document that was found has a golden answer in whole words, else 0.0.

    Source: the retrieval reward of Search-R1's study, arXiv 2505.15117. With a simulator that is
    told the answers it measures the queries less than with a corpus.
    """
    golden = trajectory.question.golden_answers
    return float(
        any(
            mentions(f"{document.title} {document.text}", golden)
            for result in trajectory.searches
            for document in result.documents
        )
    )


def no_answer(trajectory: Trajectory) -> float:
    """-1.0 where the last turn gives no answer (`has_answer`), else 0.0.

    Source: a penalty of F1+, arXiv 2602.19526; under F1 alone silence costs as much as an error.
    """
    return 0.0 if has_answer(trajectory.final_text) else -1.0


def no_search(trajectory: Trajectory) -> float:
    """-1.0 where nothing was searched, else 0.0 (the other penalty of F1+, arXiv 2602.19526)."""
    return 0.0 if trajectory.searches else -1.0


def repeated_query(trajectory: Trajectory) -> float:
    """Minus the share of queries that an earlier turn asked already: above -1, at most 0.

    Case, punctuation and articles make no difference. The query of a last turn, which is not
    answered any more, counts.
    """
    queries = [normalize_answer(turn.query) for turn in trajectory.turns if turn.query is not None]
    return (len(set(queries)) - len(queries)) / len(queries) if queries else 0.0


def malformed(trajectory: Trajectory) -> float:
    """Minus the share of turns that are neither a search nor an answer: from -1 to 0."""
    turns = trajectory.turns
    return -sum(turn.action == "invalid" for turn in turns) / len(turns) if turns else 0.0


def overlong(trajectory: Trajectory, *, limit: Count, buffer: Count) -> float:
    """0 up to `limit - buffer` sampled tokens, then falling in a line to -1 at `limit` and beyond.

    Source: soft overlong punishment of DAPO, arXiv 2503.14476, eq. 13. Only sampled tokens count:
    the policy does not choose the length of documents.

    Args:
        trajectory: a finished episode.
        limit: sampled tokens of the whole trajectory.
        buffer: tokens before it over which the penalty grows.

    Raises:
        InputError: `buffer` is not between 1 and `limit`.
    """
    if not 1 <= buffer <= limit:
        raise InputError(f"buffer={buffer} of the overlong term: give 1 to limit={limit} tokens")
    excess = sum(trajectory.sampled) - (limit - buffer)
    return -min(max(excess / buffer, 0.0), 1.0)
