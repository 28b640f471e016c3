"""A search engine: the passages that share most words with a query."""

from zerosearch.data.corpus import read_corpus
from zerosearch.types import Document, SearchRequest, SearchResult


class SharedWords:
    """Ranks the passages of a corpus in Search-R1's JSON lines (docs/data.md)."""

    def __init__(self, corpus: str) -> None:
        self.corpus = corpus
        self.passages = [
            (_words(f"{each.title} {each.text}"), Document(title=each.title, text=each.text))
            for each in read_corpus(corpus)
        ]

    async def search(self, request: SearchRequest) -> SearchResult:
        """The `request.top_k` best documents; raise a `SearchError` where there is no answer."""
        asked = _words(request.query)
        ranked = sorted(self.passages, key=lambda passage: -len(asked & passage[0]))
        documents = tuple(document for _, document in ranked[: request.top_k])
        return SearchResult(documents=documents, requested=request.top_k)

    def cache_key(self, request: SearchRequest) -> dict[str, object]:
        """All that a result depends on: search.cache=use keeps results."""
        return {"corpus": self.corpus, "query": request.query, "top_k": request.top_k}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.lower().replace(".", " ").replace("?", " ").split())
