"""From a configuration to a policy and an engine that answer questions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra.utils import instantiate
from omegaconf import DictConfig

from zerosearch.answering.events import Event, answer
from zerosearch.core.nodes import check_nodes
from zerosearch.evaluation.trained_policy import use_checkpoint
from zerosearch.rollout.agent import Agent
from zerosearch.search.engine import Checkable, SearchEngine
from zerosearch.serving.launch import launched

COMPONENTS = ("agent", "search")


@dataclass(kw_only=True, slots=True, frozen=True)
class Subject:
    """Who answers, and who is searched."""

    agent: Agent
    engine: SearchEngine
    seed: int

    async def check(self) -> None:
        """Make sure that both can do their work; loads the model.

        Raises:
            InputError: one cannot; says why and what to do.
        """
        if isinstance(self.engine, Checkable):
            await self.engine.check()
        await self.agent.check()

    def answer(self, question: str, timeout_s: float | None = None) -> AsyncGenerator[Event]:
        """See `zerosearch.answering.events.answer`."""
        return answer(self.agent, self.engine, question, seed=self.seed, timeout_s=timeout_s)


@contextmanager
def loaded(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[Subject]:
    """The agent and the engine of a configuration, while their servers run.

    Args:
        cfg: with `agent`, `search`, `simulator`, `checkpoint` and `seed`.
        overrides: of the command line, see `use_checkpoint`.

    Raises:
        InputError: a setting is wrong, or the checkpoint's episode is another.
    """
    check_nodes(cfg, *COMPONENTS)
    with TemporaryDirectory(prefix="zerosearch-") as scratch:
        use_checkpoint(cfg, overrides, Path(scratch))
        with launched(cfg, Path(scratch)):
            yield Subject(
                agent=instantiate(cfg.agent, _convert_="all"),
                engine=instantiate(cfg.search, _convert_="all"),
                seed=cfg.seed,
            )
