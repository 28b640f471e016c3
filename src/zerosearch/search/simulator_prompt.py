"""The instruction of a simulation LLM: a jinja2 template, shipped or the user's own file.

The paper's simulators are told the question, the golden answer and the quality wanted (arXiv
2505.04588, section 3). Here the template gets every golden answer, and the number of documents it
asks for is the one the episode wants.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import jinja2
import jinja2.meta

from zerosearch.types import SearchRequest

SHIPPED = Path(str(resources.files("zerosearch.search") / "prompts"))
VARIABLES = ("query", "question", "golden_answers", "top_k", "words_per_document", "noisy")
# A tuned simulator may know nothing of the rest, but without these two it cannot do its work.
REQUIRED = ("query", "noisy")


class SimulatorPrompt:
    """Renders the prompt of one search.

    Args:
        template: name of a shipped template, or path of a jinja2 file. It may use `query`,
            `question`, `golden_answers` (list, possibly empty), `top_k`, `words_per_document` and
            `noisy` (bool); it must use `query` and `noisy`.
        words_per_document: length the documents should have.

    Raises:
        ValueError: no such template, bad syntax, or an unknown or missing variable.
    """

    def __init__(self, template: str, words_per_document: int) -> None:
        self.words_per_document = words_per_document
        environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
        )
        text = _read(template)
        try:
            tree = environment.parse(text)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"simulator.prompt_template={template!r}, line {error.lineno}: {error.message}"
            ) from error
        used = jinja2.meta.find_undeclared_variables(tree) - set(environment.globals)
        if unknown := sorted(used - set(VARIABLES)):
            raise ValueError(
                f"simulator.prompt_template={template!r} uses {unknown}, which nothing defines: "
                f"use {list(VARIABLES)}"
            )
        if missing := [name for name in REQUIRED if name not in used]:
            raise ValueError(
                f"simulator.prompt_template={template!r} does not use {missing}: a simulator has "
                "to be told the query and whether to be noisy; add them"
            )
        self._template = environment.from_string(text)

    def render(self, request: SearchRequest, *, noisy: bool) -> str:
        """The prompt that asks for documents of one quality."""
        return self._template.render(
            query=request.query,
            question=request.question,
            golden_answers=list(request.golden_answers),
            top_k=request.top_k,
            words_per_document=self.words_per_document,
            noisy=noisy,
        )


def _read(template: str) -> str:
    for path in (Path(template), SHIPPED / f"{template}.j2"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    names = sorted(path.stem for path in SHIPPED.glob("*.j2"))
    raise ValueError(
        f"simulator.prompt_template={template!r} is no file and no shipped template: "
        f"give a path or one of {names}"
    )
