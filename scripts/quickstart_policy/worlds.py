"""Worlds the warm start reads about: the real one without held-out subjects, and made-up ones.

Made-up names make copying general: a policy that has only copied training names copies unseen ones
badly, because it can fall back on names it remembers.
"""

from __future__ import annotations

import random
import string

from zerosearch.data.geography.facts import BRIDGE_SPLIT, Entity, FactStore, load_facts, name_key

_ONSETS = ["b", "br", "c", "ch", "d", "dr", "f", "g", "gr", "h", "j", "k", "kh", "l", "m", "n"]
_ONSETS += ["p", "pr", "qu", "r", "s", "sh", "st", "t", "tr", "v", "w", "x", "y", "z", "zh", ""]
_VOWELS = ["a", "a", "e", "e", "i", "i", "o", "o", "u", "ai", "ao", "ia", "ou", "é", "á", "ü", "ö"]
_CODAS = ["", "", "", "n", "r", "s", "l", "ng", "k", "m", "t", "nd", "sk", "v"]
_CONTINENTS = ["Africa", "Asia", "Europe", "North America", "Oceania", "South America"]


def training_world() -> FactStore:
    """Real facts with the training subjects only."""
    return load_facts().restricted(["train"])


class NameMaker:
    """Makes up place names: syllables, or halves of two real training names."""

    def __init__(self, rng: random.Random, real_names: list[str]) -> None:
        self.rng = rng
        self.real_names = real_names
        self.used: set[str] = set()

    def word(self) -> str:
        """One capitalised word of one to four syllables."""
        rng = self.rng
        if rng.random() < 0.5:
            first, second = rng.choice(self.real_names), rng.choice(self.real_names)
            text = first[: rng.randint(2, max(2, len(first) - 2))] + second[len(second) // 2 :]
        else:
            parts = range(rng.choice((1, 2, 2, 2, 3, 3, 4)))
            text = "".join(
                rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in parts
            )
        return text.strip()[:14].title()

    def name(self, suffix: str = "") -> str:
        """A name not made before."""
        while True:
            words = 2 if self.rng.random() < 0.2 else 1
            text = " ".join(self.word() for _ in range(words)) + suffix
            if name_key(text) and name_key(text) not in self.used:
                self.used.add(name_key(text))
                return text


def made_up_world(rng: random.Random, real_names: list[str]) -> FactStore:
    """A small world of its own: 60 countries, 20 states, 300 cities and 100 counties."""
    make = NameMaker(rng, real_names)
    letters = string.ascii_lowercase
    countries = [
        Entity(
            name=make.name(),
            kind="country",
            split=BRIDGE_SPLIT,
            facts={
                "continent": (rng.choice(_CONTINENTS),),
                "capital": (make.name(),),
                "currency": (make.word(),),
                "largest city": (make.name(),),
                "internet domain": ("." + rng.choice(letters) + rng.choice(letters),),
            },
        )
        for _ in range(60)
    ]
    states = [
        Entity(
            name=make.name(),
            kind="state",
            split=BRIDGE_SPLIT,
            facts={
                "largest city": (make.name(),),
                "postal code": ("".join(rng.choices(string.ascii_uppercase, k=2)),),
            },
        )
        for _ in range(20)
    ]
    regions = ["Africa", "America", "Asia", "Europe", "Pacific", "Indian", "Australia"]
    cities = [
        Entity(
            name=make.name(),
            kind="city",
            split="train",
            facts={
                "country": (rng.choice(countries).name,),
                "time zone": (f"{rng.choice(regions)}/{make.word()}",),
            },
        )
        for _ in range(300)
    ]
    suffixes = (" County", " County", " County", " Parish", " Municipio")
    counties = [
        Entity(
            name=make.name(rng.choice(suffixes)),
            kind="county",
            split="train",
            facts={"state": (rng.choice(states).name,)},
        )
        for _ in range(100)
    ]
    return FactStore([*countries, *states, *cities, *counties])
