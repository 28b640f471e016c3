"""Judge searches and make rows: `zerosearch judge folder=FOLDER`."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import hydra

from zerosearch.command_line.command import command
from zerosearch.command_line.keys import FLAG, TEXT
from zerosearch.core.endings import ending_in_words
from zerosearch.core.errors import InputError
from zerosearch.core.files import remove_leftovers_of
from zerosearch.core.run_date import keep_run_date

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

COMPONENTS = ("rows", "judging")


def judge(cfg: DictConfig) -> None:
    """Judge what is not judged yet, report, and write the rows."""
    from zerosearch.core.journal import Journal
    from zerosearch.core.nodes import check_nodes
    from zerosearch.tuning.agreement import print_summary, summarize, write_report
    from zerosearch.tuning.records import read_episodes
    from zerosearch.tuning.row_maker import write_rows
    from zerosearch.tuning.verdicts import cases_of, judged_searches

    check_nodes(cfg, *COMPONENTS)
    maker = hydra.utils.instantiate(cfg.rows, _convert_="all")
    judging = hydra.utils.instantiate(cfg.judging, _convert_="all")
    episodes = read_episodes(cfg.searches)
    if cfg.only_correct:
        episodes = [episode for episode in episodes if episode.correct]
    found = list(cases_of(episodes))
    if not found:
        raise InputError(
            f"searches={cfg.searches}: no document to judge; collect searches first, or set "
            "only_correct=false"
        )
    folder = Path(cfg.folder)
    keep_run_date(folder)
    settings = judging.judge.settings()
    with Journal(folder / "verdicts.jsonl", key="key", settings=settings) as journal:

        async def run() -> str:
            await judging.judge.check()
            return await judging.run([case for _, _, case in found], journal)

        missing = asyncio.run(run())
        searches = judged_searches(found, journal)
        summary = summarize(searches)
        train, validation = maker.split(maker.make(searches))
        files = folder / "train.jsonl", folder / "validation.jsonl"
        remove_leftovers_of(*files)
        for file, rows in zip(files, (train, validation), strict=True):
            write_rows(file, rows)
    summary |= {"rows": len(train), "rows_validation": len(validation)}
    write_report(folder, summary, searches)
    print_summary(summary)
    log.info("written to %s: train.jsonl, validation.jsonl, judge.json", folder)
    if missing:
        log.warning(missing)


@command(keys={"folder": TEXT, "searches": TEXT, "only_correct": FLAG})
def main(cfg: DictConfig) -> None:
    """Judge one folder of searches."""
    with ending_in_words("run again to go on: verdicts are kept"):
        judge(cfg)
