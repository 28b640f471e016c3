"""Collecting: every finished episode is kept once, budgets hold, a killed run goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.engines import ScriptedEngine
from tests.helpers.openai_server import OpenAIServer, completion, in_turn
from tests.helpers.processes import Forked, run_forked
from tests.helpers.waiting import wait_until
from zerosearch.clients.chat import ChatClient
from zerosearch.core.errors import InputError
from zerosearch.core.journal import Journal
from zerosearch.data.geography.facts import asset
from zerosearch.evaluation.baselines import ToolAgent
from zerosearch.reward.answer import extract_answer
from zerosearch.reward.metrics import exact_match
from zerosearch.rollout.agent import OnText, PlayedEpisode
from zerosearch.rollout.chat_agent import ChatAgent
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.rollout.tags import parse_turn
from zerosearch.search.bm25 import BM25Search
from zerosearch.search.cache import CachedSearch
from zerosearch.search.engine import SearchEngine
from zerosearch.tuning.budget import Budget, BudgetUsedUp, Metered
from zerosearch.tuning.collection import Collector, Outcome
from zerosearch.tuning.episode_checks import malformed
from zerosearch.tuning.records import read_episodes
from zerosearch.types import (
    Question,
    SearchError,
    SearchRequest,
    SearchResult,
    Shown,
    Trajectory,
    Turn,
)

PLAIN = EpisodeSettings(prompt_template="plain")
QUESTIONS = [
    Question(uid=f"q:{n}", text=f"Where is {n}?", golden_answers=(f"A{n}",)) for n in range(30)
]


class TwoSearches:
    """Asks twice, then answers rightly every other time."""

    async def check(self) -> None:
        """It can always play."""

    def settings(self) -> dict[str, Any]:
        return {}

    async def play(
        self,
        question: Question,
        engine: SearchEngine,
        *,
        seed: int,
        attempt: int,
        on_text: OnText | None = None,
    ) -> PlayedEpisode:
        trajectory = Trajectory(question=question, group=0, sibling=attempt, prompt_ids=[])
        for number in range(2):
            request = SearchRequest(
                query=f"{question.text} {number}",
                question=question.text,
                golden_answers=question.golden_answers,
                top_k=1,
            )
            try:
                result = await engine.search(request)
            except SearchError as error:
                trajectory.error = str(error)
                return PlayedEpisode(trajectory=trajectory, answer=None)
            assert len(result.documents) <= result.requested == 1
            await asyncio.sleep(0)
        right = int(question.uid[2:]) % 2
        answer = question.golden_answers[0] if right else "no"
        trajectory.turns.append(Turn(text=f"<answer>{answer}</answer>", action="answer"))
        return PlayedEpisode(trajectory=trajectory, answer=answer, cost_usd=0.01)


class AtOnce(TwoSearches):
    """Answers without a search, for a cent."""

    async def play(
        self,
        question: Question,
        engine: SearchEngine,
        *,
        seed: int,
        attempt: int,
        on_text: OnText | None = None,
    ) -> PlayedEpisode:
        trajectory = Trajectory(question=question, group=0, sibling=attempt, prompt_ids=[])
        return PlayedEpisode(trajectory=trajectory, answer=None, cost_usd=0.01)


class Paid(ScriptedEngine):
    """An engine whose queries cost a cent."""

    async def search(self, request: SearchRequest) -> SearchResult:
        found = await super().search(request)
        return SearchResult(documents=found.documents, requested=found.requested, cost_usd=0.01)


def collect(
    folder: Path,
    engine: Any,
    *,
    queries: int | None = None,
    usd: float | None = None,
    questions: list[Question] = QUESTIONS,
    **fields: Any,
) -> Outcome:
    usual = {"agent": TwoSearches(), "documents_per_search": 3, "concurrency": 8}
    collector = Collector(engine=engine, score=exact_match, **{**usual, **fields})
    budget = Budget(folder / "spent.jsonl", queries=queries, usd=usd)
    try:
        with Journal(folder / "episodes.jsonl", key="id", settings={}) as journal:
            return asyncio.run(collector.run(questions, journal, budget))
    finally:
        budget.close()


def test_every_search_is_kept_with_more_documents_than_were_shown(tmp_path: Path) -> None:
    engine = ScriptedEngine(["one", "two", "three"])
    outcome = collect(tmp_path, engine, attempts=2)
    episodes = read_episodes(str(tmp_path / "episodes.jsonl"))
    assert sorted(each.id for each in episodes) == sorted(
        f"q:{n}/{attempt}" for n in range(30) for attempt in (0, 1)
    )
    assert (outcome.kept, outcome.searches, outcome.empty, outcome.failed) == (60, 120, 0, 0)
    assert outcome.correct == 30 and outcome.stopped == ""
    episode = next(each for each in episodes if each.id == "q:3/1")
    assert [search.query for search in episode.searches] == ["Where is 3? 0", "Where is 3? 1"]
    assert [document.text for document in episode.searches[0].documents] == ["one", "two", "three"]
    assert (episode.golden_answers, episode.answer, episode.correct) == (("A3",), "A3", True)
    assert {request.top_k for request in engine.requests} == {3}
    assert {search.shown for each in episodes for search in each.searches} == {Shown(documents=1)}


def test_a_second_run_plays_nothing_again(tmp_path: Path) -> None:
    first = collect(tmp_path, ScriptedEngine(["x"]), questions=QUESTIONS[:10])
    before = (tmp_path / "episodes.jsonl").read_text()
    engine = ScriptedEngine(["x"])
    again = collect(tmp_path, engine, questions=QUESTIONS[:10])
    assert again.kept == again.correct == 0 < again.right == first.correct, "of all that are there"
    assert not engine.requests and (tmp_path / "episodes.jsonl").read_text() == before
    assert collect(tmp_path, engine, questions=QUESTIONS[:12]).kept == 2


def test_episodes_of_another_file_of_the_same_name_are_not_taken_over(tmp_path: Path) -> None:
    collect(tmp_path, ScriptedEngine(["x"]), questions=QUESTIONS[:3])
    other = [dataclasses.replace(question, text="Who?") for question in QUESTIONS[:3]]
    with pytest.raises(ValueError, match=r"holds another question 'q:0/0': .*folder=ANOTHER"):
        collect(tmp_path, ScriptedEngine(["x"]), questions=other)


def test_searches_without_documents_are_kept_and_counted(tmp_path: Path) -> None:
    outcome = collect(tmp_path, ScriptedEngine([]))
    assert outcome.kept == 30 and outcome.empty == 60


def test_failed_episodes_are_left_out_and_played_by_the_next_run(tmp_path: Path) -> None:
    failing = (QUESTIONS[4].text, QUESTIONS[7].text)
    outcome = collect(tmp_path, ScriptedEngine(["x"], failing=failing))
    assert (outcome.kept, outcome.failed, outcome.unplayed) == (28, 2, 0)
    assert "search.test" in outcome.error
    assert collect(tmp_path, ScriptedEngine(["x"])).kept == 2
    assert len(read_episodes(str(tmp_path / "episodes.jsonl"))) == 30


def test_too_many_failures_end_the_run_and_name_the_endpoint(tmp_path: Path) -> None:
    failing = tuple(question.text for question in QUESTIONS[:20])
    engine = ScriptedEngine(["x"], failing=failing)
    with pytest.raises(ValueError, match=r"episodes failed .*max_failed_share=0\.1.*search\.test"):
        collect(tmp_path, engine)
    assert len(engine.requests) < 60, "it does not go on to the end"


class BreaksOver(TwoSearches):
    """Has a defect that one question brings to light, in the middle of the others' episodes."""

    async def play(
        self, question: Question, engine: SearchEngine, *, seed: int, attempt: int, **more: Any
    ) -> PlayedEpisode:
        if question.uid == "q:3":
            raise KeyError("arguments")
        return await super().play(question, engine, seed=seed, attempt=attempt, **more)


def test_an_error_over_one_question_costs_no_other_its_episode(tmp_path: Path) -> None:
    outcome = collect(tmp_path, ScriptedEngine(["x"]), agent=BreaksOver())
    assert (outcome.kept, outcome.failed, outcome.unplayed) == (29, 1, 0)
    assert outcome.error == "KeyError: 'arguments'"
    assert collect(tmp_path, ScriptedEngine(["x"])).kept == 1


@pytest.mark.parametrize("concurrency", [1, 8])
def test_not_one_query_beyond_the_budget_in_any_number_of_runs(
    tmp_path: Path, concurrency: int
) -> None:
    engine = Paid(["x"])
    for limit in (7, 7, 20, 33):
        outcome = collect(tmp_path, engine, queries=limit, concurrency=concurrency)
        assert len(engine.requests) == limit
        assert f"budget.queries={limit} are used up: raise it" in outcome.stopped
        assert outcome.unplayed > 0 and outcome.failed == 0
    kept = read_episodes(str(tmp_path / "episodes.jsonl"))
    assert 33 / 2 - 8 <= len(kept) <= 33 / 2
    assert all(len(each.searches) == 2 for each in kept)


def test_dollars_end_a_run_too(tmp_path: Path) -> None:
    outcome = collect(tmp_path, Paid(["x"]), usd=0.20, concurrency=1)
    assert "budget.usd=0.2 is used up ($0.2" in outcome.stopped
    assert outcome.kept == 7, "two queries and the agent, a cent each, make three cents an episode"
    assert collect(tmp_path, Paid(["x"]), usd=0.20).kept == 0


def test_dollars_end_an_agent_that_never_searches(tmp_path: Path) -> None:
    outcome = collect(tmp_path, Paid(["x"]), usd=0.05, concurrency=1, agent=AtOnce())
    assert outcome.kept == 5 and "budget.usd=0.05 is used up" in outcome.stopped


def test_a_limit_holds_for_what_was_spent_before_it_was_set(tmp_path: Path) -> None:
    engine = Paid(["x"])
    collect(tmp_path, engine, questions=QUESTIONS[:5])
    assert collect(tmp_path, engine, queries=10).kept == 0
    assert len(engine.requests) == 10


def test_what_a_cache_answers_is_not_counted(tmp_path: Path) -> None:
    corpus = str(asset("corpus.jsonl.gz"))
    cached = CachedSearch(BM25Search(corpus=corpus), tmp_path / "cache", replay=False)  # type: ignore[arg-type]
    first = collect(tmp_path / "a", cached, queries=1000, questions=QUESTIONS[:5])
    assert first.kept == 5
    again = collect(tmp_path / "b", cached, queries=0, questions=QUESTIONS[:5])
    assert again.kept == 5 and again.stopped == ""


def test_equal_queries_under_way_at_once_are_sent_and_counted_once(tmp_path: Path) -> None:
    corpus = str(asset("corpus.jsonl.gz"))
    cached = CachedSearch(BM25Search(corpus=corpus), tmp_path / "cache", replay=False)  # type: ignore[arg-type]
    outcome = collect(tmp_path, cached, queries=2, questions=QUESTIONS[:1], attempts=8)
    assert outcome.kept == 8 and outcome.stopped == ""


def test_a_cache_asks_for_nothing_beyond_the_budget(tmp_path: Path) -> None:
    corpus = str(asset("corpus.jsonl.gz"))
    cached = CachedSearch(BM25Search(corpus=corpus), tmp_path / "cache", replay=False)  # type: ignore[arg-type]
    outcome = collect(tmp_path, cached, queries=5, questions=QUESTIONS[:5])
    assert "budget.queries=5 are used up" in outcome.stopped
    assert Budget(tmp_path / "spent.jsonl", queries=None, usd=None).queries == 5


async def test_a_search_that_fails_counts_what_it_cost(tmp_path: Path) -> None:
    class Dear:
        async def search(self, request: SearchRequest) -> SearchResult:
            raise SearchError("http://sim", "no document", cost_usd=0.3)

    budget = Budget(tmp_path / "spent.jsonl", queries=None, usd=0.5)
    metered = Metered(Dear(), budget)
    request = SearchRequest(query="q", question="q", golden_answers=())
    for _ in range(2):
        with pytest.raises(SearchError):
            await metered.search(request)
    assert budget.usd == 0.6
    with pytest.raises(BudgetUsedUp):
        await metered.search(request)
    budget.close()


def test_spending_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "spent.jsonl"
    budget = Budget(path, queries=3, usd=None)
    budget.take_query()
    budget.spend(0.5)
    budget.close()
    again = Budget(path, queries=3, usd=None)
    assert (again.queries, again.usd) == (1, 0.5)
    again.take_query()
    again.take_query()
    with pytest.raises(BudgetUsedUp):
        again.take_query()
    again.close()
    with pytest.raises(ValueError, match=r"budget\.queries=-1: give 0 or more"):
        Budget(path, queries=-1, usd=None)


# -- the command line -----------------------------------------------------------------------------


def command(folder: Path, *overrides: str) -> list[str]:
    return ["collect", f"folder={folder}", "questions.limit=40", "attempts=2", *overrides]


def lines(folder: Path) -> int:
    path = folder / "episodes.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def content(folder: Path) -> dict[str, str]:
    text = (folder / "episodes.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len({row["id"] for row in rows}) == len(rows), "no episode twice"
    return {row["id"]: json.dumps(row) for row in rows}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    program = [sys.executable, "-m", "zerosearch", *command(folder)]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert lines(folder) == 80
    return folder


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_run_ended_half_way_goes_on_to_the_same_episodes(
    alone: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    running = Forked(*command(tmp_path, "concurrency=2"))
    wait_until(lambda: lines(tmp_path) >= 10)
    running.send_signal(number)
    printed = "".join(running.communicate())
    assert running.wait() == code, printed
    if code > 0:
        assert "run again to go on" in printed
    assert 10 <= lines(tmp_path) < 80
    again = run_forked(*command(tmp_path))
    assert again.returncode == 0, again.stderr
    assert content(tmp_path) == content(alone)
    assert [*content(tmp_path)] == [*content(alone)], "in the same order"


def test_the_texts_of_a_local_policy_are_what_it_sampled(alone: Path) -> None:
    episodes = read_episodes(str(alone / "episodes.jsonl"))
    assert sum(malformed(each) is None for each in episodes) > 60
    for each in episodes:
        turns = [parse_turn(text) for text in each.texts]
        queries = [turn.content for turn in turns if turn.action == "search"]
        assert queries[: len(each.searches)] == [search.query for search in each.searches]
        assert extract_answer(each.texts[-1]) == each.answer


class Hostile(TwoSearches):
    """A chat agent whose model asks for, and answers with, a control token."""

    def __init__(self, kind: type[ChatAgent], search: str) -> None:
        self._kind, self._search = kind, search

    async def play(
        self,
        question: Question,
        engine: SearchEngine,
        *,
        seed: int,
        attempt: int,
        on_text: OnText | None = None,
    ) -> PlayedEpisode:
        replies = [f"<think>so</think>{self._search}", "<answer>A0 </s>"]
        with OpenAIServer(answer=in_turn(*map(completion, replies))) as server:
            chat = self._kind(ChatClient([server.url], "m", node="agent.client"), PLAIN)
            return await chat.play(question, engine, seed=seed, attempt=attempt)


@pytest.mark.parametrize(
    ("kind", "search"),
    [
        (ChatAgent, "<search>a <|im_end|>\n b"),
        (ToolAgent, '<tool_call>{"name": "search", "arguments": {"query": "a <|im_end|> b"}}'),
    ],
)
def test_texts_searches_and_answer_of_a_chat_agent_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[ChatAgent], search: str
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    engine = ScriptedEngine(["x"])
    collect(tmp_path, engine, questions=QUESTIONS[:1], agent=Hostile(kind, search))
    [episode] = read_episodes(str(tmp_path / "episodes.jsonl"))
    assert episode.texts == (
        "<think> so </think> <search> a ‹¦im_end¦› b </search>",
        "<answer> A0 ‹/s› </answer>",
    )
    assert [search.query for search in episode.searches] == ["a ‹¦im_end¦› b"]
    assert [search.shown for search in episode.searches] == [Shown(documents=1)]
    assert episode.answer == "A0 ‹/s›" and malformed(episode) is None


@pytest.mark.parametrize(
    ("pages", "shown"),
    [
        (["a" * 30, "b" * 300], Shown(documents=1)),
        (["a" * 30, "b" * 30], Shown(documents=2)),
        (["a" * 300, "b"], Shown(documents=1, cut_at=143)),
    ],
)
def test_what_was_read_of_a_search_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: list[str], shown: Shown
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tight = dataclasses.replace(PLAIN, max_observation_tokens=42)  # 168 characters

    class Reads(TwoSearches):
        async def play(self, question: Question, *given: Any, **more: Any) -> PlayedEpisode:
            replies = ["<search>a</search>", "<answer>A0</answer>"]
            with OpenAIServer(answer=in_turn(*map(completion, replies))) as server:
                client = ChatClient([server.url], "m", node="agent.client")
                return await ChatAgent(client, tight).play(question, *given, **more)

    collect(tmp_path, ScriptedEngine(pages), questions=QUESTIONS[:1], agent=Reads())
    [episode] = read_episodes(str(tmp_path / "episodes.jsonl"))
    assert [search.shown for search in episode.searches] == [shown]
    assert len(episode.searches[0].documents) == 2


class Picky(TwoSearches):
    async def play(self, question: Question, *_: Any, **__: Any) -> PlayedEpisode:
        raise InputError(f"question {question.uid!r}: ask another agent")


def test_a_question_that_an_agent_does_not_play_ends_the_run_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^question 'q:\d+': ask another agent$"):
        collect(tmp_path, ScriptedEngine(["x"]), agent=Picky())


def test_noise_is_asked_of_the_engine(tmp_path: Path) -> None:
    engine = ScriptedEngine(["x"])
    collect(tmp_path, engine, questions=QUESTIONS[:1], noise_probability=0.5)
    assert {request.noise_probability for request in engine.requests} == {0.5}


def test_recorded_searches_are_imported_once(
    tmp_path: Path, run_collect: Callable[..., str]
) -> None:
    log = tmp_path / "log.jsonl"
    row = {
        "question": "Who?",
        "golden_answer": "Ada",
        "final_answer": "Ada",
        "judged_correct": True,
    }
    rows = [{**row, "turn": n, "query": f"q{n}", "documents": ["text"]} for n in (1, 2)]
    log.write_text("".join(json.dumps(each) + "\n" for each in rows))
    for _ in range(2):
        assert "1 episodes" in run_collect(tmp_path / "out", f"import_from={log}")
    [episode] = read_episodes(str(tmp_path / "out" / "episodes.jsonl"))
    assert [search.query for search in episode.searches] == ["q1", "q2"]


@pytest.fixture
def run_collect() -> Callable[..., str]:
    def run(folder: Path, *overrides: str, code: int = 0) -> str:
        done = run_forked(*command(folder, *overrides))
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


def test_other_settings_are_refused(alone: Path, run_collect: Callable[..., str]) -> None:
    said = run_collect(alone, "search.engine.k1=1.2", "search.engine.index_dir=elsewhere", code=1)
    assert "holds rows made with search.engine.k1=1.5, and it is 1.2 now: set it back" in said
    said = run_collect(alone, "collector.documents_per_search=9", code=1)
    assert "holds rows made with documents_per_search=5, and it is 9 now: set it back" in said


def test_a_simulator_that_is_launched_is_asked(
    tmp_path: Path, run_collect: Callable[..., str]
) -> None:
    fake = f"[{sys.executable},{ROOT / 'tests' / 'helpers' / 'fake_vllm.py'}]"
    server = ["simulator.launch=true", "simulator.server.port=null"]
    chosen = ["agent=rule", "search=simulated", "simulator=prompted_3b", *server]
    said = run_collect(tmp_path, *chosen, f"simulator.server.command={fake}", code=1)
    assert "http://127.0.0.1:" in said and "404" in said, "it has no such page"
    assert (tmp_path / "simulator-0.log").is_file()


def test_the_real_log_has_all_its_searches(tmp_path: Path, run_collect: Callable[..., str]) -> None:
    log = ROOT.parent / "shared" / "data" / "search_logs.jsonl.gz"
    if not log.exists():
        pytest.skip("the recorded searches are not beside this checkout")
    assert "988 episodes" in run_collect(tmp_path, f"import_from={log}")
    episodes = read_episodes(str(tmp_path / "episodes.jsonl"))
    assert sum(len(each.searches) for each in episodes) == 2176
