"""The fidelity of an engine: what it is asked, what is warned of, what is written."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.openai_server import OpenAIServer, Reply, completion, failure
from tests.helpers.simulated import simulated_search
from zerosearch.data.geography.facts import load_facts
from zerosearch.data.rows import Columns
from zerosearch.simulator.engine import SimulatedSearch
from zerosearch.simulator.measurement import Asked, ask_all, summarize, warnings_of
from zerosearch.simulator.measurement_report import read_questions, write_report
from zerosearch.simulator.scripted import ScriptedSimulator
from zerosearch.types import Question, SearchError, SearchRequest, SearchResult

BOUNDS = {
    "answer_in_useful": 0.7,
    "answer_in_noisy": 0.1,
    "incomplete": 0.05,
    "duplicates": 0.05,
    "failed": 0.02,
}
QUESTIONS = [
    (Question(uid=str(n), text=f"capital of {n}?", golden_answers=(f"Town {n}",)), f"query {n}")
    for n in range(6)
]


async def ask(engine: Any, questions: Any = QUESTIONS, **changes: Any) -> list[Asked]:
    settings = {"top_k": 2, "timeout_s": 60.0, "concurrency": 4, "seed": 0, **changes}
    return await ask_all(engine, questions, **settings)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def simulator(reply: Any) -> OpenAIServer:
    return OpenAIServer(answer=reply)


def engine_at(url: str) -> SimulatedSearch:
    return simulated_search([url], "simulator-7b", max_retries=0, max_reply_retries=0)


async def test_a_faithful_simulator_passes() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        prompt = body["messages"][-1]["content"]
        (number,) = set(re.findall(r"query (\d)", prompt))
        useful = f"Doc 1: It is Town {number}.\nDoc 2: More about place {number}."
        noisy = f"Doc 1: A river near {number}.\nDoc 2: A hill near {number}."
        return completion(noisy if "NOISY" in prompt else useful)

    with simulator(reply) as server:
        asked = await ask(engine_at(server.url))
        sent = [each.prompt for each in server.received]
    assert len(sent) == 12 and sum("NOISY" in prompt for prompt in sent) == 6
    assert all("capital of" in prompt and "Town" in prompt for prompt in sent)
    summary = summarize(asked)
    assert summary["useful"]["answer_in_useful"] == 1.0
    assert summary["useful"]["answer_documents_useful"] == 0.5
    assert summary["noisy"]["answer_in_noisy"] == 0.0
    assert summary["noisy"]["searches"] == 6 and summary["noisy"]["failed"] == 0
    assert warnings_of(summary, BOUNDS) == []


async def test_a_simulator_that_leaks_misses_repeats_and_stops_short_is_warned_of() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        noisy = "NOISY" in body["messages"][-1]["content"]
        leaks = " ".join(f"Town {n}" for n in range(6))
        return completion(f"Doc 1: {leaks}" if noisy else "Doc 1: Nothing.\nDoc 2: nothing")

    with simulator(reply) as server:
        warnings = warnings_of(summarize(await ask(engine_at(server.url))), BOUNDS)
    assert warnings == [
        "useful documents hold a golden answer in 0%, below thresholds.answer_in_useful=0.7",
        "noisy documents hold a golden answer in 100%, above thresholds.answer_in_noisy=0.1",
        "fewer noisy documents than asked for came in 100%, above thresholds.incomplete=0.05",
        "useful documents repeat one of the same search in 50%, above thresholds.duplicates=0.05",
    ]


async def test_failed_searches_are_counted_and_explained(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        noisy = "NOISY" in body["messages"][-1]["content"]
        return failure(500, "out of memory") if noisy else completion("Doc 1: a\nDoc 2: b")

    with simulator(reply) as server:
        asked = await ask(engine_at(server.url))
    summary = summarize(asked)
    assert (summary["useful"]["failed"], summary["noisy"]["failed"]) == (0.0, 1.0)
    warnings = warnings_of(summary, BOUNDS)
    assert any("answer_in_noisy is not known" in warning for warning in warnings)
    assert any("searches for noisy documents failed in 100%" in warning for warning in warnings)
    write_report(tmp_path, {**summary, "warnings": warnings}, asked)
    with (tmp_path / "searches.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    by_quality = {row["quality"]: row for row in rows}
    assert "out of memory" in by_quality["noisy"]["error"]
    assert by_quality["noisy"]["documents"] == ""
    assert json.loads(by_quality["useful"]["documents"]) == ["a", "b"]
    assert json.loads((tmp_path / "fidelity.json").read_text())["noisy"]["failed"] == 1.0


async def test_an_error_over_one_search_costs_no_other() -> None:
    class Stumbling:
        async def search(self, request: SearchRequest) -> SearchResult:
            if request.query == "query 3":
                raise KeyError("a defect")
            return SearchResult(documents=(), requested=request.top_k)

    asked = await ask(Stumbling())
    assert [each.query for each in asked if each.result is None] == ["query 3"] * 2
    assert "Stumbling: KeyError: 'a defect'" in str(asked[6].failure)


async def test_an_engine_that_cannot_answer_says_so_at_once() -> None:
    with (
        OpenAIServer(models=["another"]) as server,
        pytest.raises(ValueError, match="is not served at"),
    ):
        await ask(engine_at(server.url))


async def test_an_unreliable_scripted_simulator_is_found_out() -> None:
    questions = read_questions(None, 60, None, Columns())
    shares = {}
    for reliability in (1.0, 0.5):
        engine = ScriptedSimulator(load_facts(), reliability=reliability)
        summary = summarize(await ask(engine, questions, top_k=5))
        shares[reliability] = (
            summary["useful"]["answer_in_useful"],
            summary["noisy"]["answer_in_noisy"],
        )
    assert shares[1.0][0] > 0.9 and shares[1.0][1] == 0.0
    assert 0.3 < shares[0.5][0] < 0.7 and 0.3 < shares[0.5][1] < 0.7


async def test_no_more_searches_than_allowed_are_in_progress() -> None:
    class Engine:
        now = most = 0

        async def search(self, request: SearchRequest) -> SearchResult:
            import asyncio

            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.005)
            self.now -= 1
            raise SearchError("engine", "as the test demands")

    engine = Engine()
    await ask(engine, concurrency=3)
    assert engine.most == 3


def test_an_unknown_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"thresholds\.leaks is unknown"):
        warnings_of({"useful": {}, "noisy": {}}, {"leaks": 0.1})


# -- questions ------------------------------------------------------------------------------------


def test_queries_of_a_search_log_are_used(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    row = {"question": "Who?", "golden_answer": "Ada", "query": " who it was "}
    log.write_text(json.dumps(row) + "\n")
    ((question, query),) = read_questions(
        [str(log)], None, "query", Columns(answer="golden_answer")
    )
    assert (question.text, question.golden_answers, query) == ("Who?", ("Ada",), "who it was")
    ((_, query),) = read_questions([str(log)], None, None, Columns(answer="golden_answer"))
    assert query == "Who?"
    with pytest.raises(ValueError, match=r"line 1: data\.query_column=asked holds no query"):
        read_questions([str(log)], None, "asked", Columns(answer="golden_answer"))


def test_the_recorded_searches_of_a_real_agent_are_read() -> None:
    log = ROOT.parent / "shared" / "data" / "search_logs.jsonl.gz"
    if not log.is_file():
        pytest.skip(f"needs the search logs at {log}")
    pairs = read_questions([str(log)], 100, "query", Columns(answer="golden_answer"))
    assert len(pairs) == 100 and len({query for _, query in pairs}) > 90


def test_a_limit_keeps_a_fixed_selection() -> None:
    few, more = (read_questions(None, limit, None, Columns()) for limit in (5, 20))
    assert len(few) == 5 and set(few) <= set(more)
