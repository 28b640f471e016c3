"""Who says whether a document suffices for a query (arXiv 2505.04588, section 3.2).

`LLMJudge` is the paper's; `RuleJudge` looks for the golden answer, at no cost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from zerosearch.clients.chat import ChatModel, Tally
from zerosearch.core.controls import disarm
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, CountOrZero, NotNegative, Positive, check_least
from zerosearch.core.seeding import derive_seed
from zerosearch.core.templates import PromptTemplate, read_template_file
from zerosearch.core.text import mentions, normalize_answer
from zerosearch.simulator.fidelity import findable
from zerosearch.types import Document

PROMPTS = Path(str(resources.files("zerosearch.tuning") / "prompts"))
_VERDICT = re.compile(
    r"^[ \t*_#>-]*verdict[ \t*_]*:[ \t*_]*(sufficient|insufficient)[ \t*_.]*$", re.I
)


@dataclass(kw_only=True, slots=True, frozen=True)
class Case:
    """One document of one search."""

    question: str
    golden_answers: tuple[str, ...]
    query: str
    document: Document
    later_queries: tuple[str, ...] = ()  # of the same episode, where it ended with a right answer


@dataclass(kw_only=True, slots=True, frozen=True)
class Verdict:
    """What a judge said."""

    useful: bool | None  # None: nothing that can be read as a verdict
    reply: str = ""
    cost_usd: float = 0.0


class Judge(Protocol):
    """Decides cases; safe to call concurrently."""

    async def judge(self, case: Case) -> Verdict:
        """One verdict.

        Raises:
            SearchError: the judge could not be asked.
        """
        ...

    async def check(self) -> None:
        """Raise an InputError with the remedy where the judge cannot be asked."""
        ...

    def settings(self) -> dict[str, Any]:
        """JSON values that decide what it says."""
        ...


class RuleJudge:
    """A document suffices if its text holds a golden answer.

    "Yes" and "no" are in any text, so where nothing else is sought there is no verdict.

    Args:
        follow_ups: a document suffices, too, if it holds the words with which a later query of an
            episode that ended well goes beyond question and query: "France", if after "country of
            Lyon" came "capital of France". That keeps the first of two hops useful.
    """

    def __init__(self, *, follow_ups: bool = False) -> None:
        self.follow_ups = follow_ups

    async def judge(self, case: Case) -> Verdict:
        """See `Judge`."""
        text, sought = case.document.text, findable(case.golden_answers)
        if not sought:
            return Verdict(useful=None)
        useful = mentions(text, sought)
        if not useful and self.follow_ups:
            known = _words(f"{case.question} {case.query}")
            news = [_words(query) - known for query in case.later_queries]
            useful = any(new and new <= _words(text) for new in news)
        return Verdict(useful=useful)

    async def check(self) -> None:
        """A rule is always there."""

    def settings(self) -> dict[str, Any]:
        """See `Judge`."""
        return {"judge": "rule", "follow_ups": self.follow_ups}


class LLMJudge:
    """Asks a chat model, which must end its reply with `Verdict: sufficient` or `insufficient`.

    Args:
        client: the model.
        prompt_template: name of a shipped template or path of a jinja2 file; it may use `question`,
            `golden_answers`, `query`, `document` and `fence`, a line that the document does not
            hold.
        temperature: of the first attempt and the further ones.
        max_tokens: of a reply.
        max_reply_retries: further attempts, with another seed, after a reply without a verdict.
        timeout_s: bound of all attempts at one case.

    Raises:
        InputError: a number is out of range, or the template cannot be used.
    """

    def __init__(
        self,
        client: ChatModel,
        *,
        prompt_template: str = "judge",
        temperature: NotNegative = 0.0,
        max_tokens: Count = 200,
        max_reply_retries: CountOrZero = 2,
        timeout_s: Positive = 120.0,
    ) -> None:
        for name, value, least in (
            ("temperature", temperature, 0),
            ("max_tokens", max_tokens, 1),
            ("max_reply_retries", max_reply_retries, 0),
            ("timeout_s", timeout_s, 1),
        ):
            check_least("judge", name, value, least)
        self.client = client
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.max_reply_retries = max_reply_retries
        self.timeout_s = timeout_s
        self._text = _read(prompt_template)
        self._template = PromptTemplate(
            self._text,
            f"judge.prompt_template={prompt_template!r}",
            "question, golden_answers, query, document and fence",
            keeps_end=False,
        )
        self._prompt(
            Case(question="q", golden_answers=("a",), query="q", document=Document(text=""))
        )

    async def judge(self, case: Case) -> Verdict:
        """See `Judge`; where no attempt brings a verdict, `useful` is None."""
        prompt, tally, text = self._prompt(case), Tally(), ""
        useful: bool | None = None
        for attempt in range(self.max_reply_retries + 1):
            body = {
                "messages": [{"role": "user", "content": prompt}],
                "temperature": self.temperature if attempt == 0 else max(0.7, self.temperature),
                "max_tokens": self.max_tokens,
                "seed": derive_seed("judge", prompt, attempt) >> 32,
            }
            async with self.client.slot():
                text = (await self.client.ask(body, timeout_s=self.timeout_s, tally=tally)).text
            useful = read_verdict(text)
            if useful is not None:
                break
        cost_usd = tally.tokens * self.client.usd_per_million_tokens / 1e6
        return Verdict(useful=useful, reply=text, cost_usd=cost_usd)

    async def check(self) -> None:
        """See `Judge`."""
        await self.client.check()

    def settings(self) -> dict[str, Any]:
        """See `Judge`."""
        return {
            "judge": self.client.model,
            "prompt": self._text,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }

    def _prompt(self, case: Case) -> str:
        document = disarm(f"{case.document.title}\n{case.document.text}".strip())
        return self._template.render(
            question=disarm(case.question),
            golden_answers=[disarm(each) for each in case.golden_answers],
            query=disarm(case.query),
            document=document,
            fence=fence_of(document),
        )


def fence_of(document: str) -> str:
    """A line of at least five = that the document does not hold."""
    longest = max(map(len, re.findall("=+", document)), default=0)
    return "=" * max(5, longest + 1)


def read_verdict(reply: str) -> bool | None:
    """The verdict of a reply: its last line that is not empty, and no other; None if it is none."""
    lines = [line for line in reply.strip().splitlines() if line.strip()]
    found = _VERDICT.fullmatch(lines[-1]) if lines else None
    return None if found is None else found[1].lower() == "sufficient"


def _words(text: str) -> set[str]:
    return set(normalize_answer(text).split())


def _read(template: str) -> str:
    for path in (Path(template), PROMPTS / f"{template}.j2"):
        if path.is_file():
            return read_template_file(path, f"judge.prompt_template={template!r}")
    raise InputError(
        f"judge.prompt_template={template!r} is no file and no shipped template: give a path, or "
        "'judge'"
    )
