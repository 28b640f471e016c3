"""The prompt template that the rows of a simulation-tuning data set were made with.

The rows are split by quality, the prompts of each are aligned into a form of constant text and
slots, the slots are named, and the forms become one jinja2 template. Nothing is taken on trust:
each row's values are read back from its prompt, rendered, and compared byte for byte.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zerosearch.core.errors import InputError
from zerosearch.simulator.prompt import SimulatorPrompt
from zerosearch.tuning.row_reader import TuningRow
from zerosearch.tuning.template.alignment import SYSTEM_END, Skeleton
from zerosearch.tuning.template.filling import Filling, make_filling, parts_of, write_template
from zerosearch.tuning.template.forms import Form, Slot, make_form, slots_of
from zerosearch.tuning.template.quality import split_by_quality
from zerosearch.tuning.template.slot_names import NAMES, conflicts, name_slots
from zerosearch.types import SearchRequest

QUALITIES = ("useful", "noisy")
RARE = 0.05  # share of prompts of a quality that may be worded unlike the others
_QUESTION_MARK = (
    "every {quality} prompt has a question mark after slot {number}: it is taken to be the "
    "question's own; where it is not, add it to the template behind the question"
)


@dataclass(kw_only=True, slots=True)
class QualityForm:
    """What was found of the prompts of one quality."""

    quality: str
    form: Form
    slots: list[Slot]
    fillings: dict[int, Filling]
    notes: list[str] = field(default_factory=list)

    def shown(self) -> str:
        """The form with its slots named, for people."""
        ordered = (filling for _, filling in sorted(self.fillings.items()))
        return _shown(self.form, ordered)


@dataclass(kw_only=True, slots=True)
class Derived:
    """A template and how far the rows agree with it."""

    text: str
    forms: list[QualityForm]  # useful, noisy
    rows: int
    misfits: list[str]  # per row that the template does not reproduce: where, and the difference

    @property
    def share(self) -> float:
        """Share of rows that are reproduced byte for byte."""
        return 1 - len(self.misfits) / self.rows


def derive_template(
    rows: Sequence[TuningRow],
    *,
    noisy_text: str | None = None,
    named: Mapping[tuple[str, int], str] | None = None,
    separator: str | None = None,
) -> Derived:
    """Find the template behind the prompts.

    Args:
        rows: of both qualities.
        noisy_text: what only noisy prompts hold; None: found out.
        named: (quality, slot number) -> variable, where the user has said it.
        separator: between several golden answers; None: found out.

    Raises:
        InputError: no two qualities, or a slot whose variable cannot be told; says what to give.
    """
    qualities = split_by_quality([row.text for row in rows], noisy_text)
    found: list[Derived] = []
    errors: list[ValueError] = []
    for rare in (0.0, RARE):  # first every prompt counts, then a few may be odd ones out
        try:
            found.append(_derive(rows, qualities, named or {}, separator, rare))
        except ValueError as error:
            errors.append(error)
            continue
        if not found[-1].misfits:
            break
    if not found:
        raise errors[0]
    return min(found, key=lambda derived: len(derived.misfits))


def _derive(
    rows: Sequence[TuningRow],
    qualities: Sequence[bool | None],
    named: Mapping[tuple[str, int], str],
    separator: str | None,
    rare: float,
) -> Derived:
    forms = []
    for quality in QUALITIES:
        wanted = quality == "noisy"
        chosen = [row for row, noisy in zip(rows, qualities, strict=True) if noisy is wanted]
        given = {number: name for (kind, number), name in named.items() if kind == quality}
        forms.append(_quality_form(quality, chosen, given, separator, rare))
    text = write_template(*(parts_of(each.form, each.fillings) for each in forms))
    misfits = _verify(text, forms, rows, qualities)
    return Derived(text=text, forms=forms, rows=len(rows), misfits=misfits)


def _quality_form(
    quality: str,
    rows: Sequence[TuningRow],
    given: Mapping[int, str],
    separator: str | None,
    rare: float,
) -> QualityForm:
    prompts = [row.text for row in rows]
    form = make_form(prompts, rare)
    fields = [row.fields for row in rows if form.fill(row.text) is not None]
    slots = slots_of(form, prompts)
    if unknown := sorted(set(given) - {slot.number for slot in slots}):
        raise InputError(
            f"--slot {unknown[0]}: the {quality} prompts have the slots 1 to {len(slots)}"
        )
    names = name_slots(slots, fields, given)
    _check_names(quality, slots, names)
    notes = [
        _QUESTION_MARK.format(quality=quality, number=slot.number)
        for slot in slots
        if names[slot.number] == "question" and _give_back(form.skeleton, slot, "", "?")
    ]
    for slot in slots:
        if names[slot.number] == "golden_answers" and slot.before.endswith("['"):
            _give_back(form.skeleton, slot, "'", "'")  # the quotes of a printed list
    slots = slots_of(form, prompts)
    fillings = {
        slot.number: make_filling(slot, names[slot.number], fields, separator) for slot in slots
    }
    return QualityForm(quality=quality, form=form, slots=slots, fillings=fillings, notes=notes)


def _check_names(quality: str, slots: Sequence[Slot], names: Mapping[int, str]) -> None:
    wrong = [f"slot {slot.number} could be anything" for slot in slots if slot.number not in names]
    wrong += conflicts(slots, names)
    if not wrong and "query" not in names.values():
        wrong = ["no slot is the query"]
    if wrong:
        shown = "\n".join(
            f"  {slot.number} ({names.get(slot.number, '?')}): after {slot.place}: "
            f"{', '.join(repr(value[:40]) for value in slot.present[:3])}"
            for slot in slots
        )
        raise InputError(
            f"{quality} prompts: {'; '.join(wrong)}. Say which it is with --slot NUMBER=NAME, "
            f"one of {', '.join(NAMES)}; the slots and their values:\n{shown}"
        )


def _give_back(skeleton: Skeleton, slot: Slot, head: str, tail: str) -> bool:
    """Give signs that stand around the slot in every prompt to the slot, where they do.

    Alignment cannot know that a sign which ends every value is the value's own.
    """
    for gap in range(skeleton.gaps):
        before, after = skeleton.constants[gap : gap + 2]
        if (before, after) != (slot.before, slot.after):
            continue
        keeps_apart = len(after) > len(tail) or gap + 1 == skeleton.gaps
        if before.endswith(head) and after.startswith(tail) and keeps_apart:
            constants = list(skeleton.constants)
            constants[gap] = before[: len(before) - len(head)]
            constants[gap + 1] = after[len(tail) :]
            skeleton.constants = tuple(constants)
            return True
    return False


# -- verification ---------------------------------------------------------------------------------


def _verify(
    text: str,
    forms: Sequence[QualityForm],
    rows: Sequence[TuningRow],
    qualities: Sequence[bool | None],
) -> list[str]:
    """What differs, for each row that the template does not reproduce."""
    with tempfile.TemporaryDirectory(prefix="zerosearch-") as folder:
        path = Path(folder) / "template.j2"
        path.write_text(text, encoding="utf-8", newline="")
        prompts: dict[int, SimulatorPrompt] = {}
        misfits = []
        for row, noisy in zip(rows, qualities, strict=True):
            if noisy is None:
                misfits.append(f"{row.location}: asks neither for useful nor for noisy documents")
                continue
            found = forms[noisy]
            rendered = _render(str(path), prompts, found, row.text, noisy)
            if rendered != row.messages:
                contents = [message["content"] for message in rendered or ()]
                wanted = SYSTEM_END.join(contents) if rendered else found.shown()
                misfits.append(f"{row.location}:\n{_difference(wanted, row.text)}")
    return misfits


def _render(
    path: str,
    prompts: dict[int, SimulatorPrompt],
    found: QualityForm,
    prompt: str,
    noisy: bool,
) -> list[dict[str, str]] | None:
    """The messages from a prompt's own values; None where it does not have the form."""
    texts = found.form.fill(prompt)
    if texts is None:
        return None
    values = {"query": "", "question": "", "golden_answers": (), "top_k": 5}
    values["words_per_document"] = 30
    for slot, text in zip(found.slots, texts, strict=True):
        if text is not None:
            values[found.fillings[slot.number].name] = found.fillings[slot.number].read(text)
    words = values.pop("words_per_document")
    if words not in prompts:
        prompts[words] = SimulatorPrompt(path, words)
    return prompts[words].messages(SearchRequest(**values), noisy=noisy)


def _difference(expected: str, prompt: str) -> str:
    first, second = (text.replace(SYSTEM_END, "\n").splitlines() for text in (expected, prompt))
    lines = difflib.unified_diff(first, second, "template", "row", lineterm="", n=1)
    shown = [line[:160] for line in lines][:14]
    return "\n".join(shown) or f"  template {expected!r:.300}\n  row      {prompt!r:.300}"


def _shown(form: Form, fillings: Iterator[Filling]) -> str:
    text = ""
    for gap, constant in enumerate(form.skeleton.constants):
        text += constant
        if gap == form.skeleton.gaps:
            break
        if gap in form.optional:
            text += f"[{_shown(form.optional[gap], fillings)}]"
        else:
            text += f"<{next(fillings).name}>"
    return text
