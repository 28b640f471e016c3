"""The instruction of a simulation LLM: a jinja2 template, shipped or the user's own file.

The paper's simulators are told the question, the golden answer and the quality wanted (arXiv
2505.04588, section 3). Here the template gets every golden answer, and the number of documents it
asks for is the one the episode wants.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from zerosearch.core.controls import disarm
from zerosearch.core.errors import InputError
from zerosearch.core.runs import PROMPT_FILE
from zerosearch.core.templates import PromptTemplate, read_template_file
from zerosearch.types import SearchRequest

SHIPPED = Path(str(resources.files("zerosearch.simulator") / "prompts"))
VARIABLES = ("query", "question", "golden_answers", "top_k", "words_per_document", "noisy")
_OF_A_SEARCH = ("query", "question", "golden_answers")
# A tuned simulator may know nothing of the rest, but without these two it cannot do its work.
REQUIRED = ("query", "noisy")
# Looked for in the template, never in what was rendered: a query cannot pose as a message.
_MESSAGE = re.compile(r"^\{#-? message: (system|user|assistant) -?#\}\n", re.MULTILINE)
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


class SimulatorPrompt:
    """Renders the prompt of one search.

    A template is one user message, to the byte, unless lines `{# message: system #}`,
    `{# message: user #}` and `{# message: assistant #}` divide it: then each part is a message of
    that role, for a system message or for demonstrations. Each part is a template of its own.

    Args:
        template: name of a shipped template, path of a jinja2 file, or folder of a simulator that
            was tuned here. It may use `query`, `question`, `golden_answers` (list, possibly empty),
            `top_k`, `words_per_document` and `noisy` (bool); it must use `query` and `noisy`.
        words_per_document: length the documents should have.

    Raises:
        InputError: no such template, bad syntax, an unknown or missing variable, or messages in
            an order that no chat has.
    """

    def __init__(self, template: str, words_per_document: int) -> None:
        self.words_per_document = words_per_document
        self._field = f"simulator.prompt_template={template!r}"
        text = read_template(template)
        self._check_variables(text)
        self._text = text
        self._parts = [
            (role, part, not part.names.isdisjoint(_OF_A_SEARCH))
            for role, part in self._compiled(self._divide(text))
        ]
        self._same: dict[tuple[int, int, bool], str] = {}  # messages that all searches share

    def messages(self, request: SearchRequest, *, noisy: bool) -> list[dict[str, str]]:
        """The chat that asks for documents of one quality, as `role` and `content`.

        Nothing of the request is a control token in it.
        """
        values: dict[str, Any] = {
            "query": disarm(request.query),
            "question": disarm(request.question),
            "golden_answers": [disarm(each) for each in request.golden_answers],
            "top_k": request.top_k,
            "words_per_document": self.words_per_document,
            "noisy": noisy,
        }
        messages = []
        for number, (role, part, is_own) in enumerate(self._parts):
            place = (number, request.top_k, noisy)
            content = part.render(**values) if is_own else self._same.get(place)
            if content is None:
                content = self._same[place] = part.render(**values)
            messages.append({"role": role, "content": content})
        return messages

    def render(self, request: SearchRequest, *, noisy: bool) -> str:
        """The text of all messages; of a template without divisions, the one user message."""
        return "\n".join(each["content"] for each in self.messages(request, noisy=noisy))

    def fixed_text(self) -> str:
        """The template with `words_per_document` as a constant: what a simulator was tuned on.

        Whoever reads it needs no setting beside it.
        """
        constant = f"{{%- set words_per_document = {self.words_per_document} -%}}"
        if not _MESSAGE.search(self._text):
            return constant + self._text
        return "\n".join(
            f"{{# message: {role} #}}\n{constant}{part}" for role, part in self._divide(self._text)
        )

    def _template(self, text: str, place: str = "") -> PromptTemplate:
        return PromptTemplate(text, self._field + place, ", ".join(VARIABLES))

    def _check_variables(self, text: str) -> None:
        used = self._template(text).names
        if unknown := sorted(used - set(VARIABLES)):
            raise InputError(
                f"{self._field} uses {unknown}, which nothing defines: use {list(VARIABLES)}"
            )
        if missing := [name for name in REQUIRED if name not in used]:
            raise InputError(
                f"{self._field} does not use {missing}: a simulator has to be told the query and "
                "whether to be noisy; add them"
            )

    def _divide(self, text: str) -> list[tuple[str, str]]:
        """Roles and templates of the messages."""
        before, *rest = _MESSAGE.split(text)
        if not rest:
            return [("user", text)]
        roles, parts = rest[::2], rest[1::2]
        if _COMMENT.sub("", before).strip():
            raise InputError(f"{self._field} has text before its first message: move it below")
        talk = roles[1:] if roles[0] == "system" else roles
        if talk != ["user", "assistant"] * (len(talk) // 2) + ["user"]:
            raise InputError(
                f"{self._field} has the messages {roles}: give a system message or none, then "
                "user and assistant in turn, with a user message at the end"
            )
        # The line break before a division belongs to it.
        parts = [*(part.removesuffix("\n") for part in parts[:-1]), parts[-1]]
        return list(zip(roles, parts, strict=True))

    def _compiled(self, parts: list[tuple[str, str]]) -> Iterator[tuple[str, PromptTemplate]]:
        for role, part in parts:
            try:
                yield role, self._template(part, f", {role} message")
            except InputError as error:
                raise InputError(f"{error}; each message has to be a whole template") from error


def read_template(template: str) -> str:
    """Text of a template, see `SimulatorPrompt`.

    Raises:
        InputError: there is no such template.
    """
    for path in (Path(template) / PROMPT_FILE, Path(template), SHIPPED / f"{template}.j2"):
        if path.is_file():
            return read_template_file(path, f"simulator.prompt_template={template!r}")
    names = sorted(path.stem for path in SHIPPED.glob("*.j2"))
    raise InputError(
        f"simulator.prompt_template={template!r} is no file, no folder of a tuned simulator and no "
        f"shipped template: give a path or one of {names}"
    )
