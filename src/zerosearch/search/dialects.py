"""The forms in which published retrieval servers take a query and give documents back.

Four are in use, all of them one POST of JSON: Search-R1's (verl and slime share it), SkyRL's, that
of Search-R1's web search servers, and that of ZeroSearch's Wikipedia server. A document is a
text, or in either form of a corpus: `{"id", "contents"}`, or `{"id", "text"}` with a title or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.data.corpus import split_contents
from zerosearch.types import Document


@dataclass(kw_only=True, slots=True, frozen=True)
class Dialect:
    """How one kind of server is asked and understood.

    `body` makes the JSON of one query and its number of documents; `parse` reads the documents
    from the JSON of the reply, in the server's order, or raises an InputError that says what is
    missing.
    """

    body: Callable[[str, int], dict[str, Any]]
    parse: Callable[[Any], list[Document]]


def documents_of_result(reply: Any) -> list[Document]:
    """`{"result": [[item, ..]]}`; an item is a document, or holds one as `document`."""
    rows = _field(reply, "result")
    if not isinstance(rows, list) or len(rows) != 1 or not isinstance(rows[0], list):
        raise InputError(f"'result' is no list with one list of documents, but {_shape(rows)}")
    return [_document(item) for item in rows[0]]


def documents_of_list(reply: Any) -> list[Document]:
    """`[{"text": ".."}, ..]`."""
    if not isinstance(reply, list):
        raise InputError(f"it is no list of documents, but {_shape(reply)}")
    return [_document_of_fields(item, _field(item, "text")) for item in reply]


DIALECTS: dict[str, Dialect] = {
    "search_r1": Dialect(
        body=lambda query, top_k: {"queries": [query], "topk": top_k, "return_scores": True},
        parse=documents_of_result,
    ),
    "skyrl": Dialect(
        body=lambda query, top_k: {"query": query, "topk": top_k, "return_scores": True},
        parse=documents_of_result,
    ),
    # It decides itself how many documents it gives; the client takes the first ones.
    "search_r1_web": Dialect(
        body=lambda query, top_k: {"queries": [query]},
        parse=documents_of_result,
    ),
    "zerosearch_wiki": Dialect(
        body=lambda query, top_k: {"query": query, "top_k": top_k},
        parse=documents_of_list,
    ),
}


def get_dialect(name: str) -> Dialect:
    """The dialect of a name.

    Raises:
        InputError: no dialect has it.
    """
    if name not in DIALECTS:
        raise InputError(f"dialect={name!r} is unknown; choose one of {', '.join(DIALECTS)}")
    return DIALECTS[name]


def _document(item: Any) -> Document:
    if isinstance(item, dict) and "document" in item:
        item = item["document"]
    if isinstance(item, str):
        return _document_of_text(item, "document")
    if isinstance(item, dict) and "contents" not in item and item.keys() & {"title", "text"}:
        return _document_of_fields(item, _field(item, "text"))
    return _document_of_text(_field(item, "contents"), "contents")


def _document_of_fields(item: dict[str, Any], text: Any) -> Document:
    title = item.get("title")
    if title is None or not isinstance(text, str):
        return _document_of_text(text, "text")
    if not isinstance(title, str):
        raise InputError(f"'title' is no text, but {_shape(title)}")
    return Document(title=" ".join(title.split()), text=text.strip())


def _document_of_text(contents: Any, field: str) -> Document:
    if not isinstance(contents, str):
        raise InputError(f"'{field}' is no text, but {_shape(contents)}")
    title, text = split_contents(contents)
    return Document(title=title, text=text)


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise InputError(f"'{name}' is missing in {_shape(value)}")
    return value[name]


def _shape(value: Any) -> str:
    """What a JSON value is, without what it says: a server's text may be long, or a secret."""
    if isinstance(value, dict):
        names = ", ".join(repr(name)[:40] for name in list(value)[:8])
        return f"an object with {names}" if names else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else f"a value of type {type(value).__name__}"
