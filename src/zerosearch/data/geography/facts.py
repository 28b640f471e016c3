"""Facts of the embedded geography world: entities, their relations, and mentions of them in text.

Real facts from GeoNames (https://www.geonames.org, CC BY 4.0), selected by
`scripts/build_geography.py`. Cities and US counties are the subjects questions are asked about and
belong to exactly one split; countries and US states are the bridges of two-hop questions and are
shared, since no question has one as its subject.
"""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path

from zerosearch.core.errors import InputError

BRIDGE_SPLIT = "bridge"


@dataclass(kw_only=True, slots=True, frozen=True)
class Entity:
    """A place; `facts` maps a relation to its accepted answers, the canonical one first."""

    name: str
    kind: str  # city | county | country | state
    split: str  # train | validation | test | bridge
    facts: dict[str, tuple[str, ...]] = field(hash=False)

    @property
    def bridge(self) -> tuple[str, ...]:
        """Names of the bridge entity: the first hop of a two-hop question."""
        return self.facts["country" if self.kind == "city" else "state"]


def name_key(text: str) -> str:
    """Casefolded words without accents or punctuation, the form names are compared in."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(re.findall(r"[a-z0-9]+", plain.casefold()))


class FactStore:
    """Entities by name, with a search for the longest name that a text mentions.

    Args:
        entities: the places known; names must differ in their `name_key`.
    """

    def __init__(self, entities: Iterable[Entity]) -> None:
        self._by_key: dict[str, Entity] = {}
        self._by_group: dict[tuple[str, str], list[Entity]] = {}
        self._by_bridge: dict[str, list[Entity]] = {}
        for entity in entities:
            key = name_key(entity.name)
            if not key or key in self._by_key:
                raise InputError(f"entity name {entity.name!r} is empty or not unique: rename it")
            self._by_key[key] = entity
            self._by_group.setdefault((entity.kind, entity.split), []).append(entity)
            if entity.split != BRIDGE_SPLIT:
                self._by_bridge.setdefault(entity.bridge[0], []).append(entity)
        self._longest = max((len(key.split()) for key in self._by_key), default=0)

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self):
        return iter(self._by_key.values())

    def get(self, name: str) -> Entity | None:
        """The entity of exactly this name, or None."""
        return self._by_key.get(name_key(name))

    def find(self, text: str) -> Entity | None:
        """The entity with the longest name mentioned in `text`; the last one on a tie."""
        words = name_key(text).split()
        for length in range(min(self._longest, len(words)), 0, -1):
            for start in range(len(words) - length, -1, -1):
                entity = self._by_key.get(" ".join(words[start : start + length]))
                if entity is not None:
                    return entity
        return None

    @property
    def groups(self) -> list[tuple[str, str]]:
        """The (kind, split) pairs that have entities, in a fixed order."""
        return sorted(self._by_group)

    def peers(self, kind: str, split: str) -> Sequence[Entity]:
        """All entities of one kind and split."""
        return self._by_group.get((kind, split), ())

    def inside(self, bridge: str) -> Sequence[Entity]:
        """All subjects that lie in a country or state."""
        return self._by_bridge.get(bridge, ())

    def restricted(self, splits: Iterable[str]) -> FactStore:
        """The same world without the subjects of other splits (bridges always stay)."""
        keep = {*splits, BRIDGE_SPLIT}
        return FactStore(entity for entity in self if entity.split in keep)


def asset(name: str) -> Path:
    """Path of a file shipped with the geography data set."""
    return Path(str(resources.files("zerosearch.data.geography") / "assets" / name))


@cache
def load_facts() -> FactStore:
    """The embedded world (about 4,500 places)."""
    rows = json.loads(gzip.decompress(asset("facts.json.gz").read_bytes()))
    return FactStore(
        Entity(
            name=row["name"],
            kind=row["kind"],
            split=row["split"],
            facts={relation: tuple(values) for relation, values in row["facts"].items()},
        )
        for row in rows
    )
