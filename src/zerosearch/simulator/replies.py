"""Reads the documents out of what a simulation LLM wrote, and says what is wrong with it.

A reply should be lines `Doc 1: ...` to `Doc k: ...` and nothing else. Models decorate, comment,
refuse and stop short; each of these has a name, so that it can be counted. Read, too, is
the JSON that some models were tuned on: `[{"id": 1, "title": "..", "text": ".."}, ..]`, or such an
object a line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from zerosearch.types import Document

Problem = Literal[
    "empty",  # no text, or nothing but thinking
    "refusal",  # no documents, but an excuse
    "no_documents",  # text of some other kind
    "too_few",  # some documents, but not as many as asked for
    "too_many",  # the first ones were kept
    "misnumbered",  # the numbers do not count up from 1
    "extra_text",  # text around the documents, left out
    "too_long",  # a document was cut at `MAX_DOCUMENT_CHARS`
    "truncated",  # the token limit cut the last document, which is left out or shortened
]

# Runs of spaces are taken whole (*+): given back one by one, 50,000 of them would take minutes.
# "Doc 3:", also as instruct models decorate it: "**Doc 3:**", "### Document 3:", "- [Doc 3]:".
_MARKER = re.compile(
    r"^[ \t>#*_-]*+\[?Doc(?:ument)?[ \t]*+#?(\d{1,9})\]?[ \t]*+(?:\*\*|__)?[ \t]*+[:：]"
    r"(?:\*\*|__)?",
    re.IGNORECASE | re.MULTILINE,
)
# Code fences and horizontal rules that models put around or between documents.
_DECORATION_LINE = re.compile(r"^[ \t]*(?:`{3,}\w*|-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$", re.MULTILINE)
_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|as an ai|unable to|not able to|cannot|(?:ca|wo|could|would)n['’]t"
    r"|(?:can|could|will|would) not|not comfortable|against my)\b",
    re.IGNORECASE,
)
# Far more than is ever shown: a server that keeps to no limit must not cost seconds later on.
MAX_DOCUMENT_CHARS = 20_000
_JSON_CHARS = 1_000_000
_MOST_BEYOND = 100  # documents that are looked at beyond those asked for
_REFUSAL_CHARS = 300  # an excuse comes first
_SENTENCE = re.compile(r".*[.!?…。！？][\"'”’)\]]*(?=\s|$)", re.DOTALL)
_PARAGRAPH_BREAK = re.compile(r"\n[ \t]*\n")


@dataclass(kw_only=True, slots=True, frozen=True)
class Reply:
    """The usable part of a reply.

    `is_short`: another attempt may bring more, as documents are missing or cut.
    """

    documents: tuple[Document, ...] = ()
    problems: tuple[Problem, ...] = ()
    is_short: bool = True


def parse_reply(reply: str, top_k: int, finish_reason: str | None = "stop") -> Reply:
    """The documents of a reply, and its problems by name.

    A document runs to the next marker, over line breaks; one without a letter or digit is none. A
    `<think>` part, whose drafts may hold markers too, is left out without complaint. Of a last
    document with paragraphs where no other one has them, only the first is kept: what follows is
    a comment. A last document that the token limit cut is left out; where it is the only one, it
    is shortened to its whole sentences.

    Args:
        reply: what the model wrote.
        top_k: documents asked for; the first ones are kept.
        finish_reason: "length" where the token limit ended the reply.

    Returns:
        At most `top_k` documents in the order of the reply; none where it is unusable.
    """
    problems: list[Problem] = []
    is_cut = finish_reason == "length"
    text = reply.rpartition("</think>")[2].partition("<think>")[0]
    most = top_k + _MOST_BEYOND
    before, *parts = _MARKER.split(text, most)  # text before, then number, text, number, text, ...
    parts = parts[: 2 * (most - 1)]  # the last text holds all that follows
    numbers = [int(number) for number in parts[::2]]
    texts = [_DECORATION_LINE.sub("", part).strip() for part in parts[1::2]]
    if not texts and (written := _json_documents(text)):
        short = len(written) < top_k
        problem = () if len(written) == top_k else (_amount(len(written), top_k),)
        return Reply(documents=tuple(written[:top_k]), problems=problem, is_short=short)
    if not texts:
        return Reply(problems=(_why_none(text), *(("truncated",) if is_cut else ())))
    if _DECORATION_LINE.sub("", before).strip():
        problems.append("extra_text")
    if numbers != list(range(1, len(numbers) + 1)):
        problems.append("misnumbered")
    if is_cut and len(texts) <= top_k:
        problems.append("truncated")
    if is_cut:
        texts[-1:] = [] if len(texts) > 1 else _whole_sentences(texts[0])
    elif (kept := _without_comment(texts)) != texts[-1]:
        texts[-1] = kept
        problems.append("extra_text")
    if any(len(text) > MAX_DOCUMENT_CHARS for text in texts):
        problems.append("too_long")
    texts = [text[:MAX_DOCUMENT_CHARS] for text in texts]
    found = [Document(text=text) for text in texts if any(char.isalnum() for char in text)]
    if len(found) != top_k:
        problems.append("no_documents" if not found else _amount(len(found), top_k))
    return Reply(
        documents=tuple(found[:top_k]),
        problems=tuple(dict.fromkeys(problems)),
        is_short=len(found) < top_k or "truncated" in problems,
    )


def _json_documents(text: str) -> list[Document]:
    """Documents of a JSON array of objects with text and perhaps title, or of such lines."""
    bare = _DECORATION_LINE.sub("", text).strip()
    if not bare.startswith(("[", "{")) or len(bare) > _JSON_CHARS:
        return []
    try:
        rows = json.loads(bare if bare[0] == "[" else "[" + bare.replace("\n", ",") + "]")
        found = [(row.get("title") or "", row["text"]) for row in rows]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return []
    return [
        Document(title=" ".join(title.split()), text=body.strip()[:MAX_DOCUMENT_CHARS])
        for title, body in found
        if isinstance(title, str) and isinstance(body, str) and any(map(str.isalnum, body))
    ]


def _amount(found: int, top_k: int) -> Problem:
    return "too_few" if found < top_k else "too_many"


def _why_none(text: str) -> Problem:
    text = text.strip()
    if not text:
        return "empty"
    return "refusal" if _REFUSAL.search(text[:_REFUSAL_CHARS]) else "no_documents"


def _without_comment(texts: list[str]) -> str:
    """The last document; its first paragraph, where only it has several."""
    if len(texts) == 1 or any(_PARAGRAPH_BREAK.search(text) for text in texts[:-1]):
        return texts[-1]
    return _PARAGRAPH_BREAK.split(texts[-1], maxsplit=1)[0].strip()


def _whole_sentences(text: str) -> list[str]:
    """The text up to the end of its last complete sentence, if it has one."""
    whole = _SENTENCE.match(text)
    return [whole[0]] if whole else []
