"""Services that sell Google's results: how each is asked, and what its replies look like.

Serper (https://serper.dev) and SerpApi (https://serpapi.com/search-api, and for its errors
https://serpapi.com/api-status-and-error-codes). One page of results is asked for, about ten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from zerosearch.core.errors import InputError
from zerosearch.types import Document


@dataclass(kw_only=True, slots=True, frozen=True)
class WebQuery:
    """What is asked; language and country are codes such as "en" and "us"."""

    text: str
    language: str
    country: str


@dataclass(kw_only=True, slots=True, frozen=True)
class Provider:
    """One service."""

    base_url: str
    key_env: str  # environment variable with the key
    sign_up: str  # where a key is to be had
    out_of_credit: tuple[str, ...]  # what it says then, in lower case
    # client, base URL, key, query -> request
    build: Callable[[httpx.AsyncClient, str, str, WebQuery], httpx.Request]
    # reply -> documents, best first; ValueError where the reply is none
    parse: Callable[[Any], list[Document]]


def get_provider(name: str) -> Provider:
    """The service of a name.

    Raises:
        InputError: no service has that name.
    """
    if name not in PROVIDERS:
        raise InputError(f"provider={name!r} is unknown; choose one of {', '.join(PROVIDERS)}")
    return PROVIDERS[name]


def _build_serper(
    client: httpx.AsyncClient, base_url: str, key: str, query: WebQuery
) -> httpx.Request:
    body = {"q": query.text, "hl": query.language, "gl": query.country}
    return client.build_request("POST", f"{base_url}/search", json=body, headers={"X-API-KEY": key})


def _parse_serper(reply: Any) -> list[Document]:
    if not isinstance(reply, dict) or not isinstance(reply.get("organic"), list):
        raise InputError("it holds no list 'organic'")
    return _documents(reply.get("answerBox"), reply["organic"])


def _build_serpapi(
    client: httpx.AsyncClient, base_url: str, key: str, query: WebQuery
) -> httpx.Request:
    fields = {"engine": "google", "q": query.text, "hl": query.language, "gl": query.country}
    # The service takes the key in the URL only, so the URL of this request is never shown.
    return client.build_request("GET", f"{base_url}/search.json", params={**fields, "api_key": key})


def _parse_serpapi(reply: Any) -> list[Document]:
    metadata = reply.get("search_metadata") if isinstance(reply, dict) else None
    status = metadata.get("status") if isinstance(metadata, dict) else None
    if status != "Success":
        said = reply.get("error") if isinstance(reply, dict) else None
        raise InputError(f"its search status is {status!r}, not 'Success' (error: {said!r})")
    # Nothing found: a success with an "error" that says so, and without the list.
    organic = reply.get("organic_results", [])
    if not isinstance(organic, list):
        raise InputError("its 'organic_results' is no list")
    return _documents(reply.get("answer_box"), organic)


def _documents(answer_box: Any, organic: list[Any]) -> list[Document]:
    """The box above the results, where it says anything, and the results that have a snippet."""
    rows = [row for row in (answer_box, *organic) if isinstance(row, dict)]
    documents = [Document(title=_text(row, "title"), text=_shown(row)) for row in rows]
    return [document for document in documents if document.text]


def _shown(row: Mapping[str, Any]) -> str:
    # An organic result has a snippet alone; a box an answer, a snippet or both.
    texts = (_text(row, name) for name in ("answer", "result", "snippet"))
    return " ".join(text for text in texts if text)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return value.strip() if isinstance(value, str) else ""


PROVIDERS: dict[str, Provider] = {
    "serper": Provider(
        base_url="https://google.serper.dev",
        key_env="SERPER_API_KEY",
        sign_up="https://serper.dev",
        out_of_credit=("not enough credits",),
        build=_build_serper,
        parse=_parse_serper,
    ),
    "serpapi": Provider(
        base_url="https://serpapi.com",
        key_env="SERPAPI_API_KEY",
        sign_up="https://serpapi.com",
        out_of_credit=("run out of searches", "have run out"),
        build=_build_serpapi,
        parse=_parse_serpapi,
    ),
}
