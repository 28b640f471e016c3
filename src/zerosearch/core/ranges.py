"""Ranges of settings, as annotations: what a configuration gives is held against them.

`zerosearch.core.nodes` reads them; in code they are plain numbers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from zerosearch.core.errors import InputError

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what torch and NumPy take
Port = Annotated[int, Field(ge=0, le=65535)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16", "float16"]  # of weights and of what is computed in
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]


def check_least(node: str, name: str, value: float, least: float) -> None:
    """Raise InputError where a setting of a node is below its least value."""
    if not value >= least:
        raise InputError(f"{node}.{name}={value}: give {least} or more")
