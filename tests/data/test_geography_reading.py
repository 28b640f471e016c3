"""Passages are read as they were worded."""

from __future__ import annotations

import pytest

from zerosearch.core.seeding import derive_random
from zerosearch.data.geography.facts import load_facts
from zerosearch.data.geography.reading import read_passage
from zerosearch.data.geography.wording import (
    ONE_HOP_RELATIONS,
    PASSAGES,
    TWO_HOP_RELATIONS,
    query_wordings,
    word_passage,
)


def test_what_is_said_of_each_place_is_read() -> None:
    rng = derive_random("reading")
    wordings = set()
    for place in load_facts():
        text = word_passage(place, rng)
        said = {relation: names[0] for relation, names in place.facts.items()}
        assert read_passage(text) == (place.name, said), text
        wordings.add(text.replace(place.name, "")[:12])
    assert len(wordings) > len(PASSAGES), "in several wordings"


@pytest.mark.parametrize("text", ["", "Lyon is nice.", "Lyon lies in France and is old."])
def test_nothing_is_guessed_from_other_text(text: str) -> None:
    assert read_passage(text) is None


@pytest.mark.parametrize("kind", ["city", "county"])
def test_each_fact_can_be_asked_for_in_other_words(kind: str) -> None:
    for relation in (*ONE_HOP_RELATIONS[kind], *TWO_HOP_RELATIONS[kind]):
        queries = query_wordings(relation, "Lyon")
        assert len({*queries}) == len(queries) >= 5
        assert all("Lyon" in query for query in queries)
