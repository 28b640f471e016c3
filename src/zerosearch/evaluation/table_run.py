"""A run that fills a table: methods x engines x benchmarks, one cell after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from zerosearch.clients.chat import ChatModel
from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.core.journal import Journal
from zerosearch.core.progress import progress_bar
from zerosearch.core.ranges import Count
from zerosearch.core.runs import JOURNAL
from zerosearch.data.sources import fixed_selection
from zerosearch.evaluation.answers import AnswerRows, without_times
from zerosearch.evaluation.asking import ask_all
from zerosearch.evaluation.benchmarks import Benchmark, check_apart
from zerosearch.evaluation.cells import cell_metrics, cell_times
from zerosearch.evaluation.tables import Results
from zerosearch.rollout.agent import Agent
from zerosearch.search.engine import Checkable, SearchEngine
from zerosearch.search.none import NoSearch
from zerosearch.simulator.probe import warn_where_unknown
from zerosearch.types import Question


@dataclass(kw_only=True, slots=True, frozen=True)
class TableEngine:
    """A search engine of the table.

    Args:
        label: shown beside a method's.
        search: it.
        settings: JSON values that tell it from others.
    """

    label: str
    search: SearchEngine
    settings: Any = None


@dataclass(kw_only=True, slots=True, frozen=True)
class Method:
    """A row of the table for each of its engines.

    Args:
        label: name of the row.
        agent: who answers; or
        prompted: makes it of the chat model that all prompted methods share.
        engines: names of those it searches with; None: all; []: it never searches.
        limit: asks so many questions of each benchmark, a fixed choice; None: all of them.

    Raises:
        InputError: neither or both of `agent` and `prompted` are given.
    """

    label: str
    agent: Agent | None = None
    prompted: partial[Agent] | None = None
    engines: list[str] | None = None
    limit: Count | None = None

    def __post_init__(self) -> None:
        if (self.agent is None) == (self.prompted is None):
            raise InputError(f"method {self.label!r}: give either agent or prompted")


_NONE = TableEngine(label="", search=NoSearch())


@dataclass(kw_only=True, slots=True)
class TableRun:
    """The cells of one table, kept in a folder.

    Args:
        methods: rows, by name.
        engines: by name.
        benchmarks: columns, by name.
        client: makes the model of the prompted methods.
        block: questions under way at a time.
        max_failed_share: of a block, see `ask_all`.
        seed: of all draws.
        folder: takes `journal/` and `answers/`, a file per row and benchmark.
        on_begin: called when engines and agents are ready, before the first question.
    """

    methods: Mapping[str, Method]
    engines: Mapping[str, TableEngine]
    benchmarks: Mapping[str, Benchmark]
    client: Callable[[], ChatModel]
    block: int
    max_failed_share: float
    seed: int
    folder: Path
    on_begin: Callable[[], None] = lambda: None
    times: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    _shared: ChatModel | None = None  # model of all prompted methods
    _probed: set[tuple[str, str]] = field(default_factory=set)  # engines and benchmarks

    def __post_init__(self) -> None:
        if not self.methods or not self.benchmarks:
            raise InputError("a table needs methods=[...] and benchmark=[...]: name at least one")
        if self.block < 1:
            raise InputError(f"block={self.block}: give 1 or more questions")
        for name, method in self.methods.items():
            for engine in method.engines or []:
                if engine not in self.engines:
                    raise InputError(
                        f"methods.{name}.engines names {engine!r}, which is none of "
                        f"{sorted(self.engines)}; choose engines= that has it"
                    )

    async def run(self) -> Results:
        """Fill what is missing of the table.

        Raises:
            InputError: questions, an engine or a model cannot be had, or too much failed; what was
                answered before is kept.
        """
        questions = {name: list(each.source.load()) for name, each in self.benchmarks.items()}
        check_apart(questions)
        asked = [self._engines_of(method) for method in self.methods.values()]
        for name in dict.fromkeys(name for names in asked for name in names if name is not None):
            engine = self.engines[name].search
            if isinstance(engine, Checkable):
                await engine.check()
        agents = {name: self._agent(method) for name, method in self.methods.items()}
        for agent in agents.values():  # all, before the first question of any
            await agent.check()
        rows: dict[str, str] = {}
        cells: dict[tuple[str, str], dict[str, float]] = {}
        for name, method in self.methods.items():
            for engine in self._engines_of(method):
                row = name if engine is None else f"{name}/{engine}"
                rows[row] = method.label
                if engine is not None:
                    rows[row] += f" ({self.engines[engine].label})"
                for benchmark, loaded in questions.items():
                    if not cells:
                        self.on_begin()
                    answered = await self._cell(
                        row, benchmark, agents[name], engine, loaded, method.limit
                    )
                    scorer = self.benchmarks[benchmark].scorer
                    cells[row, benchmark] = cell_metrics(answered, scorer)
                    self.times[row, benchmark] = cell_times(answered)
        benchmarks = {name: each.label for name, each in self.benchmarks.items()}
        return Results(benchmarks=benchmarks, rows=rows, cells=cells)

    def _agent(self, method: Method) -> Agent:
        if method.prompted is not None:
            self._shared = self._shared or self.client()
            return method.prompted(client=self._shared)
        assert method.agent is not None
        return method.agent

    async def _probe(
        self, used: TableEngine, benchmark: str, questions: list[Question], *, begun: bool
    ) -> None:
        """Say where a simulator knows nothing of a benchmark's questions; once for each pair."""
        if begun or (used.label, benchmark) in self._probed:
            return
        self._probed.add((used.label, benchmark))
        await warn_where_unknown(used.search, used.label, questions, whose=benchmark)

    def _engines_of(self, method: Method) -> list[str | None]:
        if method.engines is None:
            return list(self.engines)
        return list(method.engines) or [None]

    async def _cell(
        self,
        row: str,
        benchmark: str,
        agent: Agent,
        engine: str | None,
        questions: list[Question],
        limit: int | None,
    ) -> AnswerRows:
        chosen = [questions[index] for index in fixed_selection(len(questions), limit)]
        used = _NONE if engine is None else self.engines[engine]
        settings = {"agent": agent.settings(), "engine": used.settings, "seed": self.seed}
        path = self.folder / JOURNAL / row / f"{benchmark}.jsonl"
        await self._probe(used, benchmark, chosen, begun=path.is_file())
        with (
            Journal(path, key="id", settings=settings, later=["agent.chat"]) as journal,
            progress_bar(f"{row} {benchmark}", len(chosen)) as advance,
        ):
            answered = await ask_all(
                agent,
                used.search,
                chosen,
                journal,
                block=self.block,
                max_failed_share=self.max_failed_share,
                seed=self.seed,
                on_answers=advance,
            )
        with replacing(self.folder / "answers" / row / f"{benchmark}.jsonl") as file:
            for each in answered:
                file.write(json.dumps(without_times(each), ensure_ascii=False).encode() + b"\n")
        return answered
