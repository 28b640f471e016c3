"""Collect an agent's searches: `zerosearch collect folder=FOLDER key=value`."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig

from zerosearch.command_line.arguments import expand_simulator
from zerosearch.command_line.command import command
from zerosearch.command_line.keys import COUNT, NOT_NEGATIVE, PLACE, SEED, SHARE, TEXT
from zerosearch.commands.evaluate import identity
from zerosearch.core.endings import ending_in_words
from zerosearch.core.run_date import keep_run_date
from zerosearch.data.availability import check_data
from zerosearch.simulator.checks import check_simulator

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from zerosearch.tuning.collection import Outcome

EPISODES = "episodes.jsonl"
COMPONENTS = ("collector", "questions")
LATER = ("agent.chat", "search.engine")  # settings that files of earlier versions lack
FREE = (  # settings of engines: how long and how often they are asked, at what price
    *("max_concurrency", "max_retries", "attempt_timeout_s", "backoff_s", "probe_interval_s"),
    *("max_outage_s", "max_reply_bytes", "api_key_env", "latency_s", "latency_spread"),
    *("failure_rate", "usd_per_million_tokens", "usd_per_query", "max_queries"),
    *("queries_per_second", "cache_gib", "index_dir", "device", "batch_size"),
)

log = logging.getLogger(__name__)
KEYS = {
    "seed": SEED,
    "temperature": NOT_NEGATIVE,
    "folder": TEXT,
    "import_from": PLACE,
    "documents_per_search": COUNT,
    "noise_probability": SHARE,
    "attempts": COUNT,
    "concurrency": COUNT,
}


def collect(cfg: DictConfig) -> Outcome:
    """Play the episodes that are missing in `cfg.folder`."""
    from omegaconf import OmegaConf

    from zerosearch.core.journal import Journal
    from zerosearch.core.nodes import check_nodes
    from zerosearch.search.engine import Checkable
    from zerosearch.serving.launch import launched
    from zerosearch.tuning.budget import Budget

    check_nodes(cfg, *COMPONENTS)
    questions = hydra.utils.instantiate(cfg.questions, _convert_="all").load()
    folder = Path(cfg.folder)
    node = cfg.collector
    engine = node.engine.get("engine")
    settings = {
        "agent": hydra.utils.instantiate(node.agent, _convert_="all").settings(),
        "search": HydraConfig.get().runtime.choices["search"],
        "search.engine": identity(engine and OmegaConf.to_container(engine, resolve=True), *FREE),
        "documents_per_search": node.documents_per_search,
        "seed": node.seed,
    }
    if node.noise_probability:  # files of versions without it go on
        settings["noise_probability"] = node.noise_probability

    async def run(journal: Journal, budget: Budget) -> Outcome:
        # made here: a server that is launched has no address before
        collector = hydra.utils.instantiate(cfg.collector, _convert_="all")
        await collector.agent.check()
        if isinstance(collector.engine, Checkable):
            await collector.engine.check()
        return await collector.run(questions, journal, budget)

    keep_run_date(folder)
    budget = Budget(folder / "spent.jsonl", **cfg.budget)
    try:
        with (
            Journal(folder / EPISODES, key="id", settings=settings, later=LATER) as journal,
            launched(cfg, folder),
        ):
            return asyncio.run(run(journal, budget))
    finally:
        budget.close()


def import_log(path: str, folder: Path) -> int:
    """Write the recorded searches of a file as episodes; returns how many there are."""
    from zerosearch.core.journal import Journal
    from zerosearch.tuning.records import read_episodes

    episodes = read_episodes(path)
    with Journal(folder / EPISODES, key="id", settings={"import_from": path}) as journal:
        for episode in episodes:
            if episode.id not in journal:
                journal.append(episode.as_row())
    return len(episodes)


def _report(outcome: Outcome, path: Path) -> None:
    facts: dict[str, Any] = {
        "episodes": outcome.kept,
        "correct": outcome.correct,
        "searches": outcome.searches,
        "without documents": outcome.empty,
        "failed": outcome.failed,
    }
    log.info(
        "%s: this time %s", path, ", ".join(f"{value} {name}" for name, value in facts.items())
    )
    if outcome.by_searches:
        from zerosearch.tuning.episodes import shares_in_words

        found = shares_in_words(outcome.by_searches)
        log.info("all episodes there, %d of them right: %s", outcome.right, found)
    if outcome.failed:
        log.warning(
            "%d episodes failed and will be played by the next run; the first: %s",
            outcome.failed,
            outcome.error,
        )
    if outcome.stopped:
        log.warning("%d episodes are missing: %s", outcome.unplayed, outcome.stopped)


@command(keys=KEYS, checks=[check_simulator, check_data], expand=[expand_simulator])
def main(cfg: DictConfig) -> None:
    """Collect, or import."""
    path = Path(cfg.folder) / EPISODES
    with ending_in_words():
        if cfg.import_from is not None:
            log.info("%s: %d episodes", path, import_log(cfg.import_from, Path(cfg.folder)))
            return
        outcome = collect(cfg)
    _report(outcome, path)
    if outcome.signal is not None:
        raise SystemExit(128 + outcome.signal)
