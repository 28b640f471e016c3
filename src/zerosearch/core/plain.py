"""Data classes from the values of a file that others may have written.

Values are data: nothing in them names what is made of them, and no text in them is interpolated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from zerosearch.core.errors import InputError

T = TypeVar("T")


def from_plain(kind: type[T], values: Any, where: str) -> T:
    """An object of a data class.

    Args:
        kind: the data class.
        values: of its fields, by name; names that it does not know are left out.
        where: the values stand, for messages.

    Raises:
        InputError: a value is of another type, or out of its range.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {values!r:.80}: it should hold fields by name")
    kinds = get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    known = {name: values[name] for name in names if name in values}
    for name, value in known.items():
        check_plain(kinds[name], value, f"{where}.{name}")
    try:
        return kind(**known)
    except TypeError as error:
        raise InputError(f"{where}: {error}") from error


def check_plain(kind: Any, value: Any, where: str) -> None:
    """Refuse a value that is not of a type, without any conversion.

    Args:
        kind: as annotations write it.
        value: of a file.
        where: it stands, for messages.

    Raises:
        InputError: it is of another type, or out of its range.
    """
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise InputError(f"{where} is {value!r:.80}: {said}; the file was changed") from error
