"""Find the answer in what the policy wrote.

The reference searched prompt and response together, so the example answer of the prompt or an
answer tag inside a document could score. Here the caller passes sampled text of one turn alone.
"""

from __future__ import annotations

from zerosearch.core.text import normalize_answer

OPEN_TAG = "<answer>"
CLOSE_TAG = "</answer>"


def extract_answer(sampled_text: str) -> str | None:
    """The content of the last complete `<answer>..</answer>` of a text.

    A closing tag is paired with the nearest opening tag before it, so the answer itself never
    contains an answer tag. A tag without its partner is ignored.

    Args:
        sampled_text: text the policy sampled in its last turn; never the prompt or a document.

    Returns:
        The stripped answer, "" for an empty pair, None where there is no complete pair.
    """
    closed_parts = sampled_text.split(CLOSE_TAG)[:-1]
    for part in reversed(closed_parts):
        _, tag, answer = part.rpartition(OPEN_TAG)
        if tag:
            return answer.strip()
    return None


def has_answer(sampled_text: str) -> bool:
    """Whether a text answers with something that could score.

    An answer whose normal form is empty ("", "The", "?!") is none: else an empty pair of tags would
    be the way to answer nothing unseen.
    """
    return bool(normalize_answer(extract_answer(sampled_text) or ""))
