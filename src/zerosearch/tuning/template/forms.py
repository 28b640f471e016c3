"""Prompts of one quality as a form: constant text, slots, and parts that some prompts lack."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from zerosearch.tuning.template.alignment import SYSTEM_END, Skeleton, align_all

_MAX_FILLS = 200  # ways to read one prompt that are tried


@dataclass(kw_only=True, slots=True)
class Slot:
    """A place where something was filled in; numbered from 1 within its form."""

    number: int
    before: str  # constant text on its left, back to the slot before
    after: str
    values: list[str | None]  # one per prompt that fits; None where its part is missing

    @property
    def present(self) -> list[str]:
        """Values of the prompts that have this slot."""
        return [value for value in self.values if value is not None]

    @property
    def place(self) -> str:
        """The constant text right before it, for people."""
        return repr(self.before.replace(SYSTEM_END, "\n")[-40:])


@dataclass(kw_only=True, slots=True)
class Form:
    """A skeleton whose gaps are slots, or parts with slots of their own (`optional`)."""

    skeleton: Skeleton
    optional: dict[int, Form] = field(default_factory=dict)

    def fill(self, prompt: str) -> list[str | None] | None:
        """Values of all slots in order; None where the prompt does not fit."""
        for texts in itertools.islice(self.skeleton.fills(prompt), _MAX_FILLS):
            if (values := self._with_optional(texts)) is not None:
                return values
        return None

    def _with_optional(self, texts: Sequence[str]) -> list[str | None] | None:
        values: list[str | None] = []
        for gap, text in enumerate(texts):
            inner = self.optional.get(gap)
            if inner is None:
                values.append(text)
            elif text == "":
                values += [None] * inner.slot_count
            elif (filled := inner.fill(text)) is None:
                return None
            else:
                values += filled
        return values

    @property
    def slot_count(self) -> int:
        """Number of slots, those of the optional parts included."""
        return sum(
            self.optional[gap].slot_count if gap in self.optional else 1
            for gap in range(self.skeleton.gaps)
        )

    def contexts(self, before: str = "", after: str = "") -> Iterator[tuple[str, str]]:
        """Constant text before and after each slot, in order."""
        constants = list(self.skeleton.constants)
        constants[0] = before + constants[0]
        constants[-1] += after
        for gap in range(self.skeleton.gaps):
            around = constants[gap], constants[gap + 1]
            if gap in self.optional:
                yield from self.optional[gap].contexts(*around)
            else:
                yield around


def make_form(prompts: Sequence[str], rare: float) -> Form:
    """The form that the prompts were filled into, all but a share of `rare` (see `align`)."""
    form = Form(skeleton=align_all(prompts, rare))
    rows = [row for prompt in prompts if (row := form.skeleton.fill(prompt)) is not None]
    for gap in range(form.skeleton.gaps):
        texts = [row[gap] for row in rows]
        written = [text for text in texts if text]
        if len(written) == len(texts) or len(written) < 2:
            continue
        inner = make_form(written, rare)
        if inner.slot_count and any(re.search(r"\w", text) for text in inner.skeleton.constants):
            form.optional[gap] = inner
    return form


def slots_of(form: Form, prompts: Sequence[str]) -> list[Slot]:
    """The slots of a form with the values of the prompts that fit."""
    rows = [row for prompt in prompts if (row := form.fill(prompt)) is not None]
    return [
        Slot(number=index + 1, before=before, after=after, values=[row[index] for row in rows])
        for index, (before, after) in enumerate(form.contexts())
    ]
