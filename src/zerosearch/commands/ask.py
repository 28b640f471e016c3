"""Ask a policy: `zerosearch ask "Who wrote Hamlet?" checkpoint=RUN search=bm25 [--json]`.

Without a question: one after the other from the keyboard, or from the lines of standard input.
"""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from zerosearch.command_line.arguments import expand_simulator
from zerosearch.command_line.chosen_policy import choose_policy
from zerosearch.command_line.command import command
from zerosearch.command_line.keys import FLAG, NOT_NEGATIVE, PLACE, SEED
from zerosearch.core.endings import ending_in_words
from zerosearch.core.errors import ZeroSearchError
from zerosearch.core.imports import quick_imports
from zerosearch.data.availability import check_data
from zerosearch.simulator.checks import check_simulator

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from zerosearch.answering.events import Ended

log = logging.getLogger(__name__)
KEYS = {
    "seed": SEED,
    "checkpoint": PLACE,
    "allow_other_episode": FLAG,
    "temperature": NOT_NEGATIVE,
    "json": FLAG,
}
QUESTIONS: list[str] = []  # of the command line, in words of people and so not Hydra's
VALUED = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--config-dir", "-cd")  # Hydra's flags


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Questions, and what is Hydra's: a question has a space, or neither `=` nor a leading dash.

    The word after a flag that takes one is no question, as in `--cfg job`.
    """
    questions, rest = [], []
    for before, item in zip([None, *arguments], arguments, strict=False):
        if before in VALUED:
            rest.append(item)
        elif item == "--json":
            rest.append("json=true")
        elif " " in item.strip() or not ("=" in item or item.startswith("-")):
            questions.append(item)
        else:
            rest.append(item)
    return questions, rest


def ask(cfg: DictConfig) -> int:
    """Answer all questions; returns how many got no answer."""
    overrides = list(HydraConfig.get().overrides.task)
    choose_policy(cfg, overrides)

    from rich.console import Console

    with quick_imports():
        from zerosearch.answering.load import loaded
        from zerosearch.answering.terminal import Screen, as_json

    console = Console()
    screen = Screen(console)
    lacking = 0
    with loaded(cfg, overrides) as subject:

        async def one(question: str) -> bool:
            ended: Any = None
            try:
                async for event in subject.answer(question):
                    ended = event
                    if not cfg.json:
                        screen.show(event)
            except Exception as error:  # whatever it is, the questions beside it are answered
                ended = failed(question, error)
                if not cfg.json:
                    screen.show(ended)
            if cfg.json:
                print(as_json(question, ended), flush=True)
            return ended.played.answer is not None

        asyncio.run(subject.check())
        for question in QUESTIONS or typed(console):
            lacking += not asyncio.run(one(question))
    return lacking


def failed(question: str, error: Exception) -> Ended:
    """The end of an episode that an error has ended; one of our own is said, another logged."""
    from zerosearch.answering.events import Ended
    from zerosearch.rollout.agent import lost_episode
    from zerosearch.types import Question

    if not isinstance(error, ZeroSearchError):
        log.exception("question %r was not answered", question)
    asked = Question(uid=question, text=question, golden_answers=())
    return Ended(played=lost_episode(asked, error), seconds=0.0)


def typed(console: Any) -> Iterator[str]:
    """Questions from the keyboard until an empty one, or from the lines of a pipe."""
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(newline="\n")  # a carriage return within a question ends none
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    while True:
        try:
            question = console.input("[bold]question[/] (empty: end) ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not question:
            return
        yield question


def take_questions(arguments: list[str]) -> list[str]:
    """Keep the questions of the command line; returns what is Hydra's."""
    QUESTIONS[:], rest = split_arguments(arguments)
    return rest


@command(
    keys=KEYS,
    checks=[check_simulator, check_data],
    expand=[take_questions, expand_simulator],
    error_code=2,  # 1: a question got no answer
)
def main(cfg: DictConfig) -> None:
    """Ask; the exit code is 1 where a question got no answer."""
    with ending_in_words(code=2):
        lacking = ask(cfg)
    raise SystemExit(int(lacking > 0))
