"""Keys that a command itself reads, and what may stand there: checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from zerosearch.core import ranges
from zerosearch.core.errors import InputError


@dataclass(frozen=True)
class Key:
    """A key that a command itself reads.

    Args:
        type: pydantic's, read strictly: 2.0 is no whole number and "no" no truth value.
        wanted: the same for people, after "give".
    """

    type: Any
    wanted: str

    def check(self, name: str, value: Any) -> None:
        """Raise an InputError where the value is not what is wanted."""
        try:
            TypeAdapter(self.type, config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            raise InputError(f"{name}={_shown(value)}: give {self.wanted}") from error


COUNT = Key(ranges.Count, "a whole number, 1 or more")
COUNT_OR_ALL = Key(ranges.Count | None, "a whole number, 1 or more, or null for all")
COUNT_OR_NULL = Key(ranges.Count | None, "a whole number, 1 or more, or null")
SEED = Key(ranges.Seed, "a whole number from 0 to 4294967295")
FLAG = Key(bool, "true or false")
PLACE = Key(str | None, "a path, or null")
TEXT = Key(str, "a text")
WORDS = Key(list[str], "a list of words, such as [first,second]")
MADE_FOR = Key(dict[str, Any] | None, "null to take choices as they are, or leave it out")
SHARE = Key(ranges.Share, "a number from 0 to 1")
NOT_NEGATIVE = Key(ranges.NotNegative, "a number, 0 or more")
SECONDS = Key(ranges.Positive, "seconds, more than 0")
PORT = Key(ranges.Port, "a port from 0 (any free one) to 65535")

# of the commands that train a model
OF_TRAINING: dict[str, Key] = {
    "seed": SEED,
    "threads": COUNT_OR_NULL,
    "tf32": FLAG,
    "test": FLAG,
    "resume": PLACE,
    "tags": WORDS,
    "made_for": MADE_FOR,
    "task_name": TEXT,
}


def _shown(value: Any) -> str:
    """A value as it stands on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
