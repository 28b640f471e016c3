"""How a document is shown to the policy: named styles, one string per document.

A policy is tuned to one style, so the name is configuration and goes into the checkpoint. The
styles are those of Search-R1, verl and ZeroSearch (arXiv 2505.04588): a policy tuned there reads
text of the kind it knows.
"""

from __future__ import annotations

from collections.abc import Callable

from zerosearch.core.errors import InputError
from zerosearch.types import Document

DocumentFormatter = Callable[[int, Document], str]


def search_r1(number: int, document: Document) -> str:
    """Search-R1: `Doc 1(Title: Lyon) Lyon is a city.`; without a title, as `zerosearch`."""
    if not document.title:
        return zerosearch(number, document)
    return f"Doc {number}(Title: {document.title}) {document.text}"


def verl(number: int, document: Document) -> str:
    """verl: as `search_r1`, with the text on its own line; without a title, as `zerosearch`."""
    if not document.title:
        return zerosearch(number, document)
    return f"Doc {number}(Title: {document.title})\n{document.text}"


def zerosearch(number: int, document: Document) -> str:
    """ZeroSearch: `Doc 1: Lyon is a city.`; the title is not shown."""
    return f"Doc {number}: {document.text}"


FORMATTERS: dict[str, DocumentFormatter] = {
    "search_r1": search_r1,
    "verl": verl,
    "zerosearch": zerosearch,
}


def get_formatter(name: str) -> DocumentFormatter:
    """The formatter of a style.

    Args:
        name: a key of `FORMATTERS`.

    Returns:
        A function of a document's number, counted from 1, and the document.

    Raises:
        InputError: no style has that name.
    """
    if name not in FORMATTERS:
        raise InputError(f"formatter: {name!r} is unknown; choose one of {', '.join(FORMATTERS)}")
    return FORMATTERS[name]
