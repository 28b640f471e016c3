"""A jinja2 template from the forms of useful and noisy prompts, and values back from prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.tuning.template.alignment import SYSTEM_END, tokens_of
from zerosearch.tuning.template.forms import Form, Slot
from zerosearch.tuning.template.slot_names import (
    NUMBER_WORDS,
    Fields,
    as_python_list,
    find_separator,
    number_of,
)

_SWITCHES = 12  # more differences than this, and each quality gets a text of its own
_MAY_BE_ABSENT = ("question", "golden_answers")
DEFAULT_SEPARATOR = ", "


@dataclass(kw_only=True, slots=True, frozen=True)
class Filling:
    """How a variable is written into its slot, and read out of it."""

    name: str
    expression: str
    separator: str | None = None  # of golden answers that are joined
    python_list: bool = False  # golden answers are printed as a Python list
    first_only: bool = False  # the first golden answer alone is shown
    guessed: bool = False  # no row shows for sure what stands between golden answers

    def read(self, text: str) -> Any:
        """The variable's value of a slot's text."""
        if self.name in ("top_k", "words_per_document"):
            return number_of(text)
        if self.name != "golden_answers":
            return text
        if self.python_list:
            return tuple(as_python_list(text) or ())
        if self.separator is None:
            return (text,) if text else ()
        return tuple(text.split(self.separator)) if text else ()


def make_filling(slot: Slot, name: str, fields: Sequence[Fields], separator: str | None) -> Filling:
    """The way in which the rows write a variable.

    Args:
        slot: with the values of the rows that fit.
        name: variable of the slot.
        fields: what each of these rows says of itself.
        separator: between golden answers, where the user has said it.
    """
    if name == "golden_answers":
        return _answers_filling(slot, fields, separator)
    in_words = any(not text.isdigit() for text in slot.present)
    if name == "top_k" and in_words:
        return Filling(name=name, expression=f"{{{{ {json.dumps(NUMBER_WORDS)}[top_k] }}}}")
    return Filling(name=name, expression=f"{{{{ {name} }}}}")


def _answers_filling(slot: Slot, fields: Sequence[Fields], separator: str | None) -> Filling:
    name = "golden_answers"
    known = [
        row.get(name) for row, value in zip(fields, slot.values, strict=True) if value is not None
    ]
    if all(as_python_list(value) is not None for value in slot.present if value):
        expression = "{{ (golden_answers | string)[1:-1] }}"
        return Filling(name=name, expression=expression, python_list=True)
    several = [
        (value, answers)
        for value, answers in zip(slot.present, known, strict=True)
        if isinstance(answers, list) and len(answers) > 1
    ]
    if several and all(value == answers[0] for value, answers in several):
        return Filling(name=name, expression="{{ golden_answers[:1] | join }}", first_only=True)
    guessed = separator is None and not several
    if separator is None:
        separator = find_separator(slot.present, known) or DEFAULT_SEPARATOR
    expression = f"{{{{ golden_answers | join({json.dumps(separator, ensure_ascii=False)}) }}}}"
    return Filling(name=name, expression=expression, separator=separator, guessed=guessed)


def write_template(useful: Sequence[str], noisy: Sequence[str]) -> str:
    """One template from the parts of both qualities (see `parts_of`).

    Raises:
        InputError: a system message was found in prompts of one quality alone.
    """
    both = [_split_messages(parts) for parts in (useful, noisy)]
    if len(both[0]) != len(both[1]):
        raise InputError(
            "where the system message ends is not clear in the prompts of one quality: give rows "
            "whose system messages are more alike"
        )
    texts = [_merge(*parts) for parts in zip(*both, strict=True)]
    if len(texts) == 1:
        return texts[0]
    return "{{# message: system #}}\n{}\n{{# message: user #}}\n{}".format(*texts)


def _split_messages(parts: Sequence[str]) -> list[Sequence[str]]:
    """The parts of the system message, where there is one, and of the prompt."""
    if SYSTEM_END not in parts:
        return [parts]
    end = parts.index(SYSTEM_END)
    return [parts[:end], parts[end + 1 :]]


def _merge(useful: Sequence[str], noisy: Sequence[str]) -> str:
    matcher = SequenceMatcher(None, useful, noisy, autojunk=False)
    changes = matcher.get_opcodes()
    if sum(kind != "equal" for kind, *_ in changes) > _SWITCHES:
        return _switch("".join(useful), "".join(noisy))
    return "".join(
        "".join(useful[a:b])
        if kind == "equal"
        else _switch("".join(useful[a:b]), "".join(noisy[c:d]))
        for kind, a, b, c, d in changes
    )


def _switch(useful: str, noisy: str) -> str:
    if not useful:
        return f"{{% if noisy %}}{noisy}{{% endif %}}"
    return f"{{% if noisy %}}{noisy}{{% else %}}{useful}{{% endif %}}"


def parts_of(form: Form, fillings: Mapping[int, Filling]) -> list[str]:
    """Jinja text of a form, in parts that are not to be torn apart.

    Raises:
        InputError: a part that some prompts lack does not hang on one variable.
    """
    return list(_parts(form, iter(sorted(fillings.items()))))


def _parts(form: Form, fillings: Iterator[tuple[int, Filling]]) -> Iterator[str]:
    for gap, constant in enumerate(form.skeleton.constants):
        yield from (_escape(token) for token in tokens_of(constant))
        if gap == form.skeleton.gaps:
            return
        if gap not in form.optional:
            yield next(fillings)[1].expression
            continue
        inner = form.optional[gap]
        own = [next(fillings) for _ in range(inner.slot_count)]
        names = {filling.name for _, filling in own}
        if len(names) != 1 or not names <= set(_MAY_BE_ABSENT):
            raise InputError(
                f"some prompts lack a part that shows {sorted(names)}: only a part that shows "
                f"one of {_MAY_BE_ABSENT} may be absent; name its slots with --slot NUMBER=NAME"
            )
        yield f"{{% if {names.pop()} %}}{''.join(_parts(inner, iter(own)))}{{% endif %}}"


def _escape(text: str) -> str:
    """Constant text as jinja2 prints it unchanged; it would read braces and rewrite line ends."""
    return re.sub(r"[{\r]", lambda match: f"{{{{ {json.dumps(match[0])} }}}}", text)
