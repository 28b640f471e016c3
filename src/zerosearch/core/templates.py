"""Templates of prompts and pages: the one place where jinja2 renders, in a sandbox.

A template of a prompt may come with a simulator or a policy that others made, so it is data: it can
show the values that it is given, and reach nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from zerosearch.core.errors import InputError

_ENVIRONMENT = {
    keep: ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=keep, autoescape=False
    )
    for keep in (False, True)
}
_GLOBALS = frozenset(_ENVIRONMENT[True].globals)


class PromptTemplate:
    """A compiled template.

    Args:
        text: of the template.
        field: of the configuration, with its value, for messages.
        knows: names that it is given, for messages.
        keeps_end: whether a line break at the end of the text is part of the prompt.

    Raises:
        InputError: it has not the syntax of jinja2.
    """

    def __init__(self, text: str, field: str, knows: str, *, keeps_end: bool = True) -> None:
        self._field = field
        self._knows = knows
        environment = _ENVIRONMENT[keeps_end]
        try:
            self._template = environment.from_string(text)
            #: names that it uses and does not define
            self.names = jinja2.meta.find_undeclared_variables(environment.parse(text)) - _GLOBALS
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"{field}, line {error.lineno}: {error.message}; fix the template"
            ) from error
        except Exception as error:  # of a text that Python cannot take, as a number of 5,000 digits
            raise InputError(f"{field}: {error}; fix the template") from error

    def render(self, **values: Any) -> str:
        """The text with these values in it.

        Raises:
            InputError: the template uses a name or does a thing that it may not.
        """
        try:
            return self._template.render(values)
        except jinja2.UndefinedError as error:
            raise InputError(
                f"{self._field}: {error.message}; a template may use {self._knows}"
            ) from error
        # whatever its expressions raise is the fault of the template
        except Exception as error:
            raise InputError(
                f"{self._field} cannot be rendered ({type(error).__name__}: {error}); a template "
                f"may show {self._knows} and do nothing else"
            ) from error


def render_page(text: str, **values: Any) -> str:
    """HTML from a template of our own, in which every value is escaped.

    Args:
        text: of the template; only what it marks as `safe` goes in as it is.
        values: by the names that it uses.
    """
    pages = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return pages.from_string(text).render(values)


def read_template_file(path: Path, field: str) -> str:
    """Text of a template's file.

    Args:
        path: of the file.
        field: of the configuration, with its value, for messages.

    Raises:
        InputError: it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise InputError(f"{field}: {path} is not UTF-8 ({error}); fix the template") from error
