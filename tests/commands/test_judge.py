"""The command that judges: its files, and that a killed one goes on to the same ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import ROOT, compose_config
from tests.helpers.openai_server import OpenAIServer, Reply, completion
from tests.helpers.processes import Forked, run_forked
from tests.helpers.waiting import GUARD_S, wait_until
from zerosearch.commands.judge import judge

FILES = ("train.jsonl", "validation.jsonl", "disagreements.csv")


def write_episodes(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": f"e{n}",
            "question": f"Question {n}?",
            "golden_answers": [f"A{n}"],
            "answer": f"A{n}",
            "correct": True,
            "searches": [
                {
                    "turn": 0,
                    "query": f"query {n}",
                    "documents": [
                        {"title": "", "text": f"{'A' if k == 1 else 'B'}{n} of {k}."}
                        for k in range(3)
                    ],
                }
            ],
        }
        for n in range(60)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "episodes.jsonl").write_text(text)


def command(folder: Path, *overrides: str) -> list[str]:
    return ["judge", f"folder={folder}", "rows.top_k=[1,2]", *overrides]


def run(folder: Path, *overrides: str, code: int = 0) -> str:
    done = run_forked(*command(folder, *overrides))
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def judged(folder: Path, *overrides: str) -> None:
    """The same in this process, which saves seconds of imports."""
    settings = [f"folder={folder}", "rows.top_k=[1,2]", *overrides]
    judge(compose_config(folder, *settings, name="judge"))


def answer(body: dict[str, Any]) -> Reply:
    """Says of every document that it suffices which the rule finds, and of one third more."""
    document = body["messages"][-1]["content"].split("=====\n")[1].strip()
    useful = document.startswith("A") or document.endswith("2.")
    return completion(f"Verdict: {'sufficient' if useful else 'insufficient'}", delay_s=0.02)


def test_the_rule_writes_rows_and_a_report(tmp_path: Path) -> None:
    write_episodes(tmp_path)
    program = [sys.executable, "-m", "zerosearch", *command(tmp_path)]
    subprocess.run(program, cwd=ROOT, check=True, timeout=600)
    report = json.loads((tmp_path / "judge.json").read_text())
    assert (report["documents"], report["searches_useful"]) == (180, 1.0)
    assert report["documents_useful"] == pytest.approx(1 / 3)
    assert report["agreement"]["share"] == 1.0
    assert report["rows"] + report["rows_validation"] == 240
    row = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    assert row["quality"] == "useful" and row["documents"][0]["text"].startswith("A")


@pytest.mark.timeout(900)  # three processes one after the other, on a busy machine too
def test_a_killed_judge_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    with OpenAIServer(answer=answer, models=["judge"]) as server:
        asking = [
            "judge=llm",
            f"judge.client.endpoints=[{server.url}]",
            "judge.client.model=judge",
            "judging.concurrency=4",
        ]
        alone, killed = tmp_path / "alone", tmp_path / "killed"
        write_episodes(alone)
        write_episodes(killed)
        run(alone, *asking)
        before = len(server.received)
        assert before == 180
        running = Forked(*command(killed, *asking))
        wait_until(lambda: len(server.received) >= before + 40)
        running.kill()
        running.wait(GUARD_S)
        assert not (killed / "train.jsonl").exists()
        run(killed, *asking)
        assert len(server.received) - before <= 180 + 4, "only what was under way is asked again"
    for name in FILES:
        assert (killed / name).read_bytes() == (alone / name).read_bytes(), name
    report = json.loads((alone / "judge.json").read_text())
    assert report["agreement"]["judge_only"] == 60 and report["agreement"]["rule_only"] == 0


def test_what_cannot_be_judged_is_one_sentence(tmp_path: Path) -> None:
    assert "episodes.jsonl' does not exist" in run(tmp_path / "none", code=1)
    write_episodes(tmp_path)
    down = ["judge=llm", "judge.client.endpoints=[http://127.0.0.1:9]", "judge.client.model=judge"]
    with pytest.raises(
        ValueError, match=r"judge\.client\.endpoints: no judge answers at http://127"
    ):
        judged(tmp_path, *down)
    judged(tmp_path)
    with pytest.raises(ValueError, match="made with judge='rule', and it is 'judge' now"):
        judged(tmp_path, *down)


def test_the_real_log(tmp_path: Path) -> None:
    log = ROOT.parent / "shared" / "data" / "search_logs.jsonl.gz"
    if not log.exists():
        pytest.skip("the recorded searches are not beside this checkout")
    run(tmp_path, f"searches={log}", "rows.max_words=30")
    report = json.loads((tmp_path / "judge.json").read_text())
    assert (report["searches"], report["documents"]) == (2176, 10880)
    assert 0.1 < report["documents_useful"] < 0.2 and 0.4 < report["searches_useful"] < 0.5
    assert report["rows"] > 4000
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    lengths = [len(each["text"].split()) for row in rows for each in row["documents"]]
    assert sum(lengths) / len(lengths) < 35
