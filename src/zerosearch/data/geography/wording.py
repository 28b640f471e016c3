"""How geography facts are worded: passages, questions and queries, each in several variants.

Passages stay short (11 to 40 words) because a million-parameter policy reads several per search.
"""

from __future__ import annotations

import random

from zerosearch.data.geography.facts import Entity

# The name comes before its facts: a causal model can then mark them while it reads.
PASSAGES: dict[str, tuple[str, ...]] = {
    "city": (
        "{name} is a city in {country}. Its time zone is {time_zone}.",
        "{name} lies in {country} and has the time zone {time_zone}.",
        "{name} belongs to {country}; the time zone there is {time_zone}.",
        "{name}, a city of {country}, is in the time zone {time_zone}.",
    ),
    "county": (
        "{name} is a part of the US state of {state}.",
        "{name} lies in the state of {state} in the United States.",
        "{name} belongs to {state}, a state of the United States.",
    ),
    "country": (
        "{name} is a country in {continent}. The capital of {name} is {capital} and its largest "
        "city is {largest_city}. Its currency is the {currency} and its internet domain is "
        "{internet_domain}.",
        "{name} has the capital {capital}, the currency {currency} and the largest city "
        "{largest_city}. The continent of {name} is {continent}, its internet domain "
        "{internet_domain}.",
        "In {name} people pay with the currency {currency}. The continent is {continent}, the "
        "capital of {name} is {capital}, the largest city {largest_city}, the internet domain "
        "{internet_domain}.",
    ),
    "state": (
        "{name} is a state of the United States. The largest city of {name} is {largest_city} "
        "and its postal code is {postal_code}.",
        "{name} has the postal code {postal_code}. The largest city of {name} is {largest_city}.",
    ),
}

ONE_HOP: dict[str, tuple[str, ...]] = {
    "country": (
        "In which country is {name}?",
        "What country does {name} belong to?",
        "The city of {name} lies in which country?",
        "Name the country where one finds {name}.",
        "{name} is a city of which country?",
    ),
    "time zone": (
        "Which time zone does {name} use?",
        "What is the time zone of {name}?",
        "In what time zone do the clocks of {name} run?",
        "Name the time zone of the city {name}.",
    ),
    "state": (
        "In which US state is {name}?",
        "What state does {name} belong to?",
        "{name} is part of which state?",
        "Name the state that {name} is in.",
    ),
}

TWO_HOP: dict[str, tuple[str, ...]] = {
    "capital": (
        "What is the capital of the country where {name} lies?",
        "{name} is in a country with which capital?",
        "Name the capital of the country that {name} belongs to.",
    ),
    "currency": (
        "Which currency is used in the country where {name} lies?",
        "With what currency do people pay in the country of {name}?",
        "Name the currency of the country that {name} belongs to.",
    ),
    "continent": (
        "On which continent is the country of {name}?",
        "What continent has the country that {name} belongs to?",
        "Name the continent of the country where {name} lies.",
    ),
    "internet domain": (
        "What is the internet domain of the country where {name} lies?",
        "Which internet domain does the country of {name} have?",
        "Name the internet domain of the country that {name} belongs to.",
    ),
    "largest city": (
        "What is the largest city of the {bridge} where {name} lies?",
        "Which city is the largest city in the {bridge} of {name}?",
        "Name the largest city of the {bridge} that {name} belongs to.",
    ),
    "postal code": (
        "What is the postal code of the state where {name} lies?",
        "Which postal code has the state of {name}?",
        "Name the postal code of the state that {name} belongs to.",
    ),
}

ONE_HOP_RELATIONS = {"city": ("country", "time zone"), "county": ("state",)}
TWO_HOP_RELATIONS = {
    "city": ("capital", "currency", "continent", "internet domain", "largest city"),
    "county": ("largest city", "postal code"),
}


def word_passage(entity: Entity, rng: random.Random) -> str:
    """State all facts of an entity in one of the wordings of its kind."""
    values = {relation.replace(" ", "_"): names[0] for relation, names in entity.facts.items()}
    return rng.choice(PASSAGES[entity.kind]).format(name=entity.name, **values)


def word_question(entity: Entity, relation: str, hops: int, rng: random.Random) -> str:
    """Ask for a relation of the entity (one hop) or of its country or state (two hops)."""
    templates = ONE_HOP[relation] if hops == 1 else TWO_HOP[relation]
    bridge = "country" if entity.kind == "city" else "state"
    return rng.choice(templates).format(name=entity.name, bridge=bridge)


def word_query(relation: str, name: str) -> str:
    """The query that asks a search engine for exactly one fact."""
    return f"{relation} of {name}"


# The same in other words, for who asks again.
QUERIES: dict[str, tuple[str, ...]] = {
    "country": ("In which country is {name}?", "where {name} lies", "{name} belongs to country"),
    "time zone": ("Which time zone does {name} use?", "clocks in {name}", "local time {name}"),
    "state": ("In which US state is {name}?", "where {name} lies", "{name} part of which state"),
    "capital": ("Which city is the capital of {name}?", "{name} seat of government"),
    "currency": ("With what do people pay in {name}?", "money of {name}"),
    "continent": ("On which continent is {name}?", "{name} part of the world"),
    "internet domain": ("Which internet domain does {name} have?", "top-level domain {name}"),
    "largest city": ("Which city of {name} is the largest?", "biggest city in {name}"),
    "postal code": ("Which postal code has {name}?", "postal abbreviation of {name}"),
}
_ANY_QUERY = ("{relation} of {name}", "{name} {relation}", "{name}")


def query_wordings(relation: str, name: str) -> list[str]:
    """Queries that ask for one fact, at least five different ones; the plainest first."""
    templates = (*_ANY_QUERY[:2], *QUERIES[relation], *_ANY_QUERY[2:])
    return [template.format(relation=relation, name=name) for template in templates]
