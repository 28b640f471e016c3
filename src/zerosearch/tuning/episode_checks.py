"""Whether a recorded episode is one that a policy could have sampled."""

from __future__ import annotations

from zerosearch.core.controls import THINK, disarm
from zerosearch.rollout.tags import ANSWER, INFORMATION, STOP_TAGS, parse_turn
from zerosearch.tuning.records import RecordedEpisode

_RECORD_AGAIN = "record it again with `zerosearch collect`"
_TAKE_OUT = "take the row out, or leave all such episodes out with skip_malformed=true"


def malformed(episode: RecordedEpisode) -> str | None:
    """What is wrong with an episode as a demonstration, with field, value and remedy.

    The queries are those of the recorded searches; no turn but the last answers; none goes on after
    a closing tag, writes documents or holds control tokens. Whether the last one answers, and
    rightly, and whether each turn before it searches (see `lapses`), is not judged here.

    Returns:
        None where nothing is wrong.
    """
    if not episode.texts:
        return f"'texts' is empty, so nobody knows what the agent wrote: {_RECORD_AGAIN}"
    for number, text in enumerate(episode.texts):
        wrong = _wrong_turn(text, is_last=number == len(episode.texts) - 1)
        if wrong is not None:
            return f"'texts' has in turn {number} {_end_of(text)!r}, {wrong}: {_TAKE_OUT}"
    turns = [parse_turn(text) for text in episode.texts]
    queries = [turn.content for turn in turns if turn.action == "search"]
    if turns[-1].action == "search" and len(queries) == len(episode.searches) + 1:
        queries.pop()  # the search of a last turn, which had to answer, is not made
    for query, search in zip(queries, episode.searches, strict=False):
        if query != search.query:
            return (
                f"'texts' asks {query!r:.60} and 'searches' has {search.query!r:.60} there, so the "
                f"documents are those of another query: {_TAKE_OUT}"
            )
    if len(queries) != len(episode.searches):
        return (
            f"'texts' makes {len(queries)} searches and 'searches' has {len(episode.searches)}: "
            f"{_TAKE_OUT}"
        )
    return None


def lapses(episode: RecordedEpisode) -> bool:
    """Whether a turn before the last makes no search: `episode.invalid_hint` followed it."""
    return any(parse_turn(text).action != "search" for text in episode.texts[:-1])


def _wrong_turn(text: str, *, is_last: bool) -> str | None:
    """What is wrong with the text of one turn."""
    if disarm(text, keep=THINK) != text:
        return "which holds a control token"
    if any(tag in text for tag in INFORMATION):
        return "which writes documents itself"
    rest = text.rstrip()
    closed = min((text.find(tag) + len(tag) for tag in STOP_TAGS if tag in text), default=None)
    if closed is not None and closed < len(rest):
        return "which goes on after a closing tag"
    if is_last:
        return None
    return "which answers before the last turn" if ANSWER[1] in text else None


def _end_of(text: str) -> str:
    return text if len(text) <= 80 else f".. {text[-76:]}"
