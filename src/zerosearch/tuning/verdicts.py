"""Every document of recorded searches is judged once; verdicts are kept in a journal."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.core.journal import Journal
from zerosearch.core.progress import progress_bar
from zerosearch.core.ranges import Count, NotNegative, Share
from zerosearch.core.work_off import work_off
from zerosearch.tuning.judges import Case, Judge
from zerosearch.tuning.records import RecordedEpisode
from zerosearch.tuning.row_maker import JudgedSearch
from zerosearch.types import SearchError

MIN_VERDICTS = 20  # before a share of malformed replies means anything

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class Judging:
    """How cases are brought before a judge.

    Args:
        judge: who decides.
        concurrency: cases under way at a time.
        max_malformed_share: share of cases without a usable verdict that ends the run.
        budget_usd: most dollars over all runs into the folder; None: any.
    """

    judge: Judge
    concurrency: Count = 64
    max_malformed_share: Share = 0.1
    budget_usd: NotNegative | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise InputError(f"judging.concurrency={self.concurrency}: give 1 or more")
        if not 0 <= self.max_malformed_share <= 1:
            raise InputError(
                f"judging.max_malformed_share={self.max_malformed_share}: give a share from 0 to 1"
            )

    async def run(self, cases: Sequence[Case], journal: Journal) -> str:
        """Judge the cases that are not in the journal.

        Args:
            cases: to be judged; equal ones are judged once.
            journal: of verdicts by `key`.

        Returns:
            Why documents are not judged; "" where every case is.

        Raises:
            InputError: the judge cannot be reached, or too many of its replies hold no verdict.
        """
        by_key = {case_key(case): case for case in cases}
        waiting = [(key, case) for key, case in by_key.items() if key not in journal]
        if done := len(by_key.keys() & journal.rows.keys()):
            log.info("%d of %d documents are judged already", done, len(by_key))
        count = _VerdictCount(journal)
        with progress_bar("documents", len(by_key), done=done) as advance:

            async def work(row: tuple[str, Case]) -> None:
                if not self._is_used_up(count):
                    await self._judge(*row, journal, count)
                    advance(1)
                    await asyncio.sleep(0)

            await work_off(waiting, work, concurrency=min(self.concurrency, len(by_key)))
        missing = sum(key not in journal for key in by_key)
        if missing and self._is_used_up(count):
            return (
                f"{missing} documents are not judged: judging.budget_usd={self.budget_usd:g} is "
                "used up; raise it and run again to go on"
            )
        if missing:
            return f"{missing} documents are not judged: {count.lost}; run again to try them again"
        return ""

    def _is_used_up(self, count: _VerdictCount) -> bool:
        return self.budget_usd is not None and count.usd >= self.budget_usd

    async def _judge(self, key: str, case: Case, journal: Journal, count: _VerdictCount) -> None:
        """Put a verdict into the journal; an error over one case is no verdict on that case."""
        try:
            verdict = await self.judge.judge(case)
        except SearchError as error:
            raise InputError(
                f"the judge {error.endpoint} cannot be asked: {error.reason}. Verdicts so far are "
                "kept: fix that and run again"
            ) from error
        except ZeroSearchError:
            raise
        except Exception as error:  # whatever it is, the cases beside it are judged
            log.exception("a document found by %r was not judged", case.query)
            count.lose(error)
        else:
            row = {
                "key": key,
                "useful": verdict.useful,
                "query": case.query,
                "reply": verdict.reply,
                "cost_usd": verdict.cost_usd,
            }
            journal.append(row)
            count.add(row)
        self._check_replies(count)

    def _check_replies(self, count: _VerdictCount) -> None:
        if count.rows >= MIN_VERDICTS and count.malformed > self.max_malformed_share * count.rows:
            raise InputError(
                f"{count.malformed} of {count.rows} replies of the judge hold no verdict, "
                f"more than judging.max_malformed_share={self.max_malformed_share:g} allows; the "
                f"last {count.last_malformed}. Choose another judge.client.model or "
                "judge.prompt_template, and a new folder or remove verdicts.jsonl"
            )


class _VerdictCount:
    """Of all verdicts of a journal; kept beside it, so that a row costs the same at any length."""

    def __init__(self, journal: Journal) -> None:
        self.rows = self.malformed = 0
        self.usd = 0.0
        self.last_malformed = ""
        self.lost = ""  # what the first case without a row was lost to
        for row in journal.rows.values():
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
        self.usd += row["cost_usd"]
        if row["reply"] and row["useful"] is None:
            self.malformed += 1
            self.last_malformed = f"ends {row['reply'][-80:]!r}"

    def lose(self, error: Exception) -> None:
        """A case at which the judge broke down."""
        self.rows += 1
        self.malformed += 1
        self.last_malformed = f"was lost to {type(error).__name__}: {error}"
        self.lost = (
            self.lost or f"the judge broke down at them, first with {type(error).__name__}: {error}"
        )


def cases_of(episodes: Sequence[RecordedEpisode]) -> Iterator[tuple[RecordedEpisode, int, Case]]:
    """Every document that holds text, with its episode and the position of its search."""
    for episode in episodes:
        queries = [search.query for search in episode.searches]
        for place, search in enumerate(episode.searches):
            later = tuple(queries[place + 1 :]) if episode.correct else ()
            for document in search.documents:
                if document.text.strip():
                    case = Case(
                        question=episode.question,
                        golden_answers=episode.golden_answers,
                        query=search.query,
                        document=document,
                        later_queries=later,
                    )
                    yield episode, place, case


def judged_searches(
    found: Sequence[tuple[RecordedEpisode, int, Case]], journal: Journal
) -> list[JudgedSearch]:
    """The searches of `cases_of` with their verdicts, in an order that depends on nothing else."""
    by_search: dict[str, list[Case]] = {}
    for episode, place, case in found:
        by_search.setdefault(f"{episode.id}/{place}", []).append(case)
    return [
        JudgedSearch(
            id=name,
            cases=tuple(cases),
            useful=tuple(journal.rows.get(case_key(case), {}).get("useful") for case in cases),
        )
        for name, cases in sorted(by_search.items())
    ]


def case_key(case: Case) -> str:
    """Hex digest [32] of everything a verdict depends on."""
    digest = hashlib.blake2b(digest_size=16)
    answers = "\x1e".join(case.golden_answers)
    later = "\x1e".join(case.later_queries)
    document = f"{case.document.title}\x1e{case.document.text}"
    digest.update("\x1f".join((case.question, answers, case.query, document, later)).encode())
    return digest.hexdigest()
