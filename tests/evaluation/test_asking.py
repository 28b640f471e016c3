"""Blocks of questions: kept whole, played again whole, ended where too much fails."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.engines import ScriptedEngine
from zerosearch.core.journal import Journal
from zerosearch.evaluation.answers import without_times
from zerosearch.evaluation.asking import ask_all
from zerosearch.evaluation.cells import cell_times
from zerosearch.rollout.agent import OnText, PlayedEpisode
from zerosearch.search.engine import SearchEngine
from zerosearch.types import Question, SearchError, SearchRequest, Trajectory, Turn

PAUSE_S = 0.5
QUESTIONS = [
    Question(uid=f"q:{n}", text=f"question {n}", golden_answers=(str(n % 2),)) for n in range(10)
]


class Counting:
    """Searches once and answers by how many play beside it, as a batch's rounding might."""

    def __init__(self) -> None:
        self.playing = 0
        self.played: list[str] = []

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
        self.playing += 1
        await asyncio.sleep(0)
        beside = self.playing
        await asyncio.sleep(0)
        self.playing -= 1
        self.played.append(question.uid)
        trajectory = Trajectory(question=question, group=0, sibling=0, prompt_ids=[])
        request = SearchRequest(query="q", question=question.text, golden_answers=())
        try:
            await engine.search(request)
        except SearchError as error:
            trajectory.stop_reason, trajectory.error = "search_failed", str(error)
        trajectory.turns.append(Turn(text="x", action="answer"))
        return PlayedEpisode(trajectory=trajectory, answer=str(beside))


class Slow(Counting):
    """Takes its time, which others may use."""

    async def play(self, *arguments: Any, **fields: Any) -> PlayedEpisode:
        await asyncio.sleep(PAUSE_S)
        return await super().play(*arguments, **fields)


def ask(
    folder: Path, agent: Counting, *, block: int = 4, share: float = 0.5, **engine: Any
) -> list[dict[str, Any]]:
    with Journal(folder / "x.jsonl", key="id", settings={}) as journal:
        asked = ask_all(
            agent,
            ScriptedEngine(["document"], **engine),
            QUESTIONS,
            journal,
            block=block,
            max_failed_share=share,
            seed=0,
            on_answers=lambda _: None,
        )
        return [without_times(row) for row in asyncio.run(asked)]


def test_a_run_that_was_cut_anywhere_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    whole = ask(tmp_path / "whole", Counting())
    assert [row["id"] for row in whole] == [question.uid for question in QUESTIONS]
    lines = (tmp_path / "whole" / "x.jsonl").read_bytes().splitlines(keepends=True)
    assert {row["answer"] for row in whole} == {"4", "2"}, "the last block is smaller"
    for kept in range(len(lines) + 1):
        folder = tmp_path / str(kept)
        folder.mkdir()
        torn = lines[kept][:7] if kept < len(lines) else b""
        (folder / "x.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
        agent = Counting()
        assert ask(folder, agent) == whole
        assert len(agent.played) == len(QUESTIONS) - kept // 4 * 4 or kept == len(lines)
        written = (folder / "x.jsonl").read_bytes().splitlines()
        assert len(written) == len(QUESTIONS), "no answer twice"


def test_throughput_counts_the_clock_of_all_and_latency_that_of_each(tmp_path: Path) -> None:
    ask(tmp_path, Slow(), block=5)
    with Journal(tmp_path / "x.jsonl", key="id") as journal:
        first = cell_times(list(journal.rows.values()))
    assert first["episode_s_mean"] >= PAUSE_S, "every episode waits"
    assert first["s_per_question"] < first["episode_s_mean"] / 2, "five at a time"
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    time.sleep(4 * PAUSE_S)  # between a kill and the next start
    ask(tmp_path, Slow(), block=5)
    with Journal(path, key="id") as journal:
        resumed = cell_times(list(journal.rows.values()))
    assert resumed["s_per_question"] < resumed["episode_s_mean"] / 2, "the pause does not count"
    assert resumed["questions_per_s"] == pytest.approx(1 / resumed["s_per_question"])


def test_answers_to_other_questions_are_not_taken_over(tmp_path: Path) -> None:
    ask(tmp_path, Counting())
    path = tmp_path / "x.jsonl"
    path.write_text(path.read_text().replace("question 3", "another"))
    with pytest.raises(ValueError, match=r"answers another question 'q:3': .*start a new run"):
        ask(tmp_path, Counting())


def test_a_lost_engine_ends_the_run_and_keeps_what_came_before(tmp_path: Path) -> None:
    failing = tuple(question.text for question in QUESTIONS[4:])
    agent = Counting()
    with pytest.raises(
        ValueError, match=r"4 of 4 questions failed, more than max_failed_share=0\.5"
    ):
        ask(tmp_path, agent, failing=failing)
    assert len((tmp_path / "x.jsonl").read_bytes().splitlines()) == 4
    again = Counting()
    rows = ask(tmp_path, again)
    assert len(again.played) == 6 and all(row["error"] is None for row in rows)


def test_a_few_failures_are_rows_and_count_as_wrong(tmp_path: Path) -> None:
    rows = ask(tmp_path, Counting(), failing=("question 1",))
    assert rows[1]["answer"] is None and "search.test" in rows[1]["error"]
    assert rows[1]["failed_searches"] == 1 and rows[0]["searches"] == 0
    assert len(rows) == len(QUESTIONS), "nothing is dropped"


class Broken(Counting):
    """Fails at some questions, while the others of its block are under way."""

    def __init__(self, *broken: str) -> None:
        super().__init__()
        self.broken = broken

    async def play(self, question: Question, *arguments: Any, **fields: Any) -> PlayedEpisode:
        if question.uid in self.broken:
            raise ValueError(f"the prompt of question {question.uid!r} has 9 tokens")
        return await super().play(question, *arguments, **fields)


def test_a_defect_of_the_agent_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"4 of 4 questions .* the prompt of question"):
        ask(tmp_path, Broken(*(question.uid for question in QUESTIONS)))


def test_one_exception_costs_one_question(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    agent = Broken("q:1")
    rows = ask(tmp_path, agent)
    assert len(agent.played) == len(QUESTIONS) - 1, "those beside it are answered"
    assert rows[1]["error"] == "ValueError: the prompt of question 'q:1' has 9 tokens"
    assert (rows[1]["answer"], rows[1]["em"]) == (None, 0.0)
    assert [row["error"] for row in rows if row["id"] != "q:1"] == [None] * 9
    assert "question 'q:1'" in caplog.text and "Traceback" in caplog.text, "a defect is shown"
    assert ask(tmp_path, Counting()) == rows, "it is not asked again"
