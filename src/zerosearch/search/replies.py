"""Reads the documents out of what a simulation LLM wrote."""

from __future__ import annotations

import re

from zerosearch.types import Document

# "Doc 3:", also as instruct models decorate it: "**Doc 3:**", "### Document 3:", "- [Doc 3]:".
_MARKER = re.compile(
    r"^[ \t>#*_-]*\[?Doc(?:ument)?[ \t]*#?\d+\]?[ \t]*(?:\*\*|__)?[ \t]*[:：](?:\*\*|__)?",
    re.IGNORECASE | re.MULTILINE,
)
# Code fences and horizontal rules that models put around or between documents.
_DECORATION_LINE = re.compile(r"^[ \t]*(?:`{3,}\w*|-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$", re.MULTILINE)


def parse_documents(reply: str, top_k: int) -> list[Document]:
    """The documents of a reply that holds lines `Doc 1: ...` to `Doc k: ...`.

    A document runs to the next marker, over line breaks. Text before the first marker, a
    `<think>` part (whose drafts may hold markers too) and documents without text are left out.

    Args:
        reply: what the model wrote.
        top_k: documents to keep, the first ones; a reply may hold fewer.

    Returns:
        At most `top_k` documents in the order of the reply; none where the reply is unusable.
    """
    text = reply.rpartition("</think>")[2].partition("<think>")[0]
    texts = [_DECORATION_LINE.sub("", part).strip() for part in _MARKER.split(text)[1:]]
    return [Document(text=text) for text in texts if text][:top_k]
