"""What a run will ask of its simulator, said before anything is loaded.

Light on imports. An estimate: how often a policy searches is known afterwards, and so is what a
cache answers in the simulator's place. It is never a reason to refuse a run; what ends one is
`simulator.budget_usd` (`zerosearch.callbacks.budget_stop`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from zerosearch.simulator.prompt import SimulatorPrompt
from zerosearch.types import SearchRequest

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

SEARCHES_PER_EPISODE = 1.5  # our own quickstart's at its end
CHARS_PER_TOKEN = 4  # of English, for a prompt
TOKENS_PER_WORD = 1.4  # of a document, its number included
_LIKE_A_SEARCH = SearchRequest(
    query="country whose capital is Paris",
    question="Which currency is used in the country where the city of Lyon lies?",
    golden_answers=("Euro", "EUR"),
)


@dataclass(kw_only=True, slots=True, frozen=True)
class SimulatorPlan:
    """Of a whole run, over all ranks."""

    episodes: int  # of training, and of evaluations that ask the simulator
    max_searches: int  # of an episode
    read_tokens: int  # of a search
    written_tokens: int
    usd_per_million_tokens: float
    budget_usd: float | None

    @property
    def tokens_per_search(self) -> int:
        """Read and written."""
        return self.read_tokens + self.written_tokens

    @property
    def searches(self) -> int:
        """A likely number."""
        return round(self.episodes * min(SEARCHES_PER_EPISODE, self.max_searches))

    @property
    def usd(self) -> float:
        """Of the likely number of searches."""
        return self.searches * self.tokens_per_search * self.usd_per_million_tokens / 1e6

    def sentence(self) -> str:
        """The plan in one line."""
        most = self.episodes * self.max_searches
        millions = self.searches * self.tokens_per_search / 1e6
        said = (
            f"about {self.searches:,} calls in {self.episodes:,} episodes (at most {most:,}), "
            f"{millions:,.2f} million tokens ({self.tokens_per_search:,} a call), "
        )
        if self.usd_per_million_tokens:
            said += (
                f"${self.usd:,.2f} at simulator.usd_per_million_tokens="
                f"{self.usd_per_million_tokens:g}"
            )
        else:
            said += "at no price (simulator.usd_per_million_tokens=0)"
        if self.budget_usd is not None:
            said += f"; simulator.budget_usd={self.budget_usd:g} "
            enough = self.usd <= self.budget_usd
            said += "is enough" if enough else f"will end it at about {self.share:.0%} of that"
        return said

    @property
    def share(self) -> float:
        """Of the likely costs that the budget pays."""
        if self.budget_usd is None or not self.usd:
            return 1.0
        return min(1.0, self.budget_usd / self.usd)


def say_plan(cfg: DictConfig) -> None:
    """Log the plan of a training run whose simulator is a language model."""
    plan = make_plan(cfg)
    if plan is not None:
        log.info("planned for the simulator: %s", plan.sentence())


def make_plan(cfg: DictConfig) -> SimulatorPlan | None:
    """The plan, of a composed configuration; None where no language model is asked.

    Raises:
        InputError: the simulator's template cannot be read.
    """
    if not cfg.episode.max_turns or not _asks(cfg.search):
        return None
    engine = cfg.search.engine
    words = cfg.episode.top_k * engine.words_per_document
    prompt = SimulatorPrompt(str(engine.prompt_template), engine.words_per_document)
    read = len(prompt.render(_LIKE_A_SEARCH, noisy=False)) / CHARS_PER_TOKEN
    training = cfg.policy_steps * cfg.questions_per_step * cfg.algorithm.group_size
    asking = sum(_asks(each.search) for each in cfg.evaluation.values())
    price = OmegaConf.select(engine, "client.usd_per_million_tokens")
    return SimulatorPlan(
        episodes=training + asking * held_out_episodes(cfg).of_run,
        max_searches=cfg.episode.max_turns,
        read_tokens=round(read),
        written_tokens=round(words * TOKENS_PER_WORD),
        usd_per_million_tokens=price or 0.0,
        budget_usd=OmegaConf.select(cfg, "simulator.budget_usd"),
    )


def _asks(search: DictConfig) -> bool:
    """Whether an engine asks a language model, and not only its cache."""
    return OmegaConf.select(search, "engine.client") is not None and search.get("cache") != "replay"


@dataclass(kw_only=True, slots=True, frozen=True)
class HeldOut:
    """Episodes that one evaluation engine plays, as far as their limits say how many."""

    validations: int  # during training
    of_validation: int
    tests: int  # before and after it
    of_test: int

    @property
    def of_run(self) -> int:
        """All of them."""
        return self.validations * self.of_validation + self.tests * self.of_test


def held_out_episodes(cfg: DictConfig) -> HeldOut:
    """The validations and tests of a run."""
    every = cfg.trainer.val_check_interval
    sizes = {
        part: (cfg.data.get(f"{part}_limit") or 0) * len(cfg.data.get(part) or ())
        for part in ("validation", "test")
    }
    return HeldOut(
        validations=cfg.policy_steps // every if isinstance(every, int) and every else 0,
        of_validation=sizes["validation"],
        tests=2 if cfg.test else 0,
        of_test=sizes["test"],
    )
