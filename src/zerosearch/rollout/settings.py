"""The settings of an episode: one value each for training, validation, evaluation and inference."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from zerosearch.core.controls import disarm
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, CountOrZero, Positive, check_least
from zerosearch.core.templates import PromptTemplate, read_template_file
from zerosearch.search.formatters import get_formatter
from zerosearch.types import Question

SHIPPED = Path(str(resources.files("zerosearch.rollout") / "prompts"))

# May differ between training and use: patience is no part of an episode's shape, and of a template
# the text counts, not where it lies.
_FREE = ("search_timeout_s", "prompt_template")


@dataclass(kw_only=True, frozen=True)
class EpisodeSettings:
    """What an episode looks like; stored in every checkpoint and export (invariant 16).

    Token budgets end a turn or an episode with a stop reason, they never cut the prompt.
    """

    prompt_template: str  # name of a shipped template or path of a jinja2 file
    formatter: str = "zerosearch"  # how a document is shown, see search/formatters.py
    max_turns: CountOrZero = 5  # searches an episode may make; one more turn must answer
    top_k: Count = 5  # documents per search
    max_prompt_tokens: Count = 2048
    max_turn_tokens: Count = 500
    max_observation_tokens: Count = 2048
    max_context_tokens: Count = 4096
    invalid_hint: str | None = (
        None  # inserted after a turn without an action; None ends the episode
    )
    search_timeout_s: Positive = 60.0  # all attempts of one search together
    # The prompt itself, with {question} in it, in place of the template: of a saved episode.
    prompt_text: str | None = None

    def __post_init__(self) -> None:
        get_formatter(self.formatter)
        self._check_numbers()
        if self.invalid_hint is not None and not self.invalid_hint.strip():
            raise InputError(
                f"episode.invalid_hint={self.invalid_hint!r} says nothing: write a sentence, or "
                "give null to end the episode instead"
            )
        if _PLACEHOLDER.text not in self.render_prompt(_PLACEHOLDER):
            raise InputError(
                f"episode.prompt_template={self.prompt_template!r} does not show the question: "
                "write {{ question }} where it belongs"
            )

    def _check_numbers(self) -> None:
        positive = ("max_prompt_tokens", "max_turn_tokens", "max_observation_tokens", "top_k")
        for name in positive:
            check_least("episode", name, getattr(self, name), 1)
        if self.max_turns < 0:
            raise InputError(f"episode.max_turns={self.max_turns}: give 0 (no search) or more")
        if not self.search_timeout_s > 0:
            raise InputError(
                f"episode.search_timeout_s={self.search_timeout_s}: give seconds, more than 0"
            )
        if self.max_prompt_tokens + self.max_turn_tokens > self.max_context_tokens:
            raise InputError(
                f"episode.max_context_tokens={self.max_context_tokens} does not hold a prompt of "
                f"{self.max_prompt_tokens} and a turn of {self.max_turn_tokens} tokens: raise it "
                "or lower episode.max_prompt_tokens / episode.max_turn_tokens"
            )

    @cached_property
    def template(self) -> PromptTemplate:
        """The compiled prompt template.

        Raises:
            InputError: neither a shipped template nor a file, or not the syntax of jinja2.
        """
        for path in (Path(self.prompt_template), SHIPPED / f"{self.prompt_template}.j2"):
            if path.is_file():
                field = f"episode.prompt_template={self.prompt_template!r}"
                text = read_template_file(path, field)
                return PromptTemplate(text, field, "question, max_turns and top_k")
        names = sorted(path.stem for path in SHIPPED.glob("*.j2"))
        raise InputError(
            f"episode.prompt_template={self.prompt_template!r} is no file and no shipped template: "
            f"give a path or one of {names}"
        )

    def render_prompt(self, question: Question, special_tokens: tuple[str, ...] = ()) -> str:
        """The prompt text of a question, in which nothing of the question is a control token.

        Args:
            question: what is asked.
            special_tokens: the tokenizer's control strings, beside those that `disarm` knows.

        Raises:
            InputError: the template uses a name that is not given to it, or more than names.
        """
        asked = disarm(question.text, special_tokens)
        if self.prompt_text is not None:
            return self.prompt_text.replace(_PLACEHOLDER.text, asked)
        return self.template.render(question=asked, max_turns=self.max_turns, top_k=self.top_k)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the template's text, for checkpoints and exports."""
        return {**dataclasses.asdict(self), "prompt_text": self.render_prompt(_PLACEHOLDER)}

    def check_same(self, saved: dict[str, Any]) -> None:
        """Compare with `as_dict` of the episodes a policy was trained on.

        Raises:
            InputError: one differs; says which, and the remedy.
        """
        for key, value in self.as_dict().items():
            if key not in _FREE and saved.get(key) != value:
                field = "prompt_template" if key == "prompt_text" else key
                raise InputError(
                    f"episode.{field} is {value!r} but the policy was trained with "
                    f"{saved.get(key)!r}: set it back, or train it anew on such episodes in a "
                    "run with model.path=<run folder>/policy"
                )


_PLACEHOLDER = Question(uid="placeholder", text="{question}", golden_answers=("",))
