"""Before its first step a run asks its simulator, and does not begin with one that is no use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.colour_server import MODEL, TOKENS, asking_run, tell_colours
from tests.helpers.openai_server import OpenAIServer, Reply, completion, failure
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import computed, read_metrics, run_here, small_run
from tests.helpers.simulator_check_ranks import check_on_rank
from tests.helpers.words import COLOURS
from zerosearch.callbacks.simulator_check import SimulatorCheck

pytestmark = pytest.mark.usefixtures("trains_here")

ASKED = 2 * 6 + 3  # searches of the check of a small run


def test_a_good_simulator_is_asked_once_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    short = ["policy_steps=3", "test=false", "trainer.val_check_interval=3"]
    with OpenAIServer(tell_colours, models=[MODEL]) as server:
        settings = asking_run(tmp_path, server.url, *short, "simulator.usd_per_million_tokens=10")
        unchecked = run_here(tmp_path / "unchecked", *settings, "simulator_check=off")
        without = len(server.received)
        assert "useful documents hold" not in caplog.text
        checked = run_here(tmp_path / "checked", *settings)
        asked = len(server.received) - 2 * without
        again = run_here(tmp_path / "checked", *settings, "policy_steps=4")
        resumed = server.received[2 * without + asked :]
    # Of 12 training and 5 held-out questions those of one hop are asked: the former for useful and
    # for noisy documents, the latter for useful ones.
    assert "in 100% of the searches, noisy ones in 0% (6 training questions)" in caplog.text
    assert asked == ASKED
    expected = {"questions": 6, "failed": 0, "answer_in_useful": 1, "answer_in_noisy": 0}
    assert {name: checked[f"simulator_check/{name}"] for name in expected} == expected
    assert checked["cost/tokens"] == unchecked["cost/tokens"] + asked * TOKENS
    assert checked["cost/usd"] == pytest.approx(unchecked["cost/usd"] + asked * TOKENS * 1e-5)

    rows = zip(
        read_metrics(tmp_path / "unchecked"), read_metrics(tmp_path / "checked"), strict=False
    )
    for one, other in rows:
        changed = {name for name in computed(one) if one[name] != other[name]}
        assert changed == {"cost/tokens", "cost/usd"}

    assert again["status"] == "completed" and caplog.text.count("(6 training questions)") == 1
    assert not any("colour 0\n" in each.prompt and each.body["seed"] == 0 for each in resumed)
    assert {name: again[f"simulator_check/{name}"] for name in expected} == expected, "on record"


def test_answers_to_the_check_are_cached_and_replayed(tmp_path: Path) -> None:
    short = ["policy_steps=1", "test=false", f"search.cache_folder={tmp_path / 'searches'}"]
    with OpenAIServer(tell_colours, models=[MODEL]) as server:
        settings = asking_run(tmp_path, server.url, *short)
        first = run_here(tmp_path / "first", *settings, "search.cache=use")
        assert first["cost/tokens"] == (first["cost/calls"] + ASKED) * TOKENS
        other = run_here(tmp_path / "other", *settings, "search.cache=use", "seed=1")
        assert other["cost/tokens"] == other["cost/calls"] * TOKENS, "the check is for all seeds"
    replayed = run_here(tmp_path / "replayed", *settings, "search.cache=replay")
    assert replayed["cost/tokens"] == 0
    for name in ("questions", "failed", "answer_in_useful", "answer_in_noisy"):
        key = f"simulator_check/{name}"
        assert first[key] == other[key] == replayed[key]


def leak(body: dict[str, Any]) -> Reply:
    return completion(f"Doc 1: {' '.join(COLOURS)}\nDoc 2: {COLOURS[0]}")


def talk(body: dict[str, Any]) -> Reply:
    return completion("As a language model I have no documents.")


def write_of_something_else(body: dict[str, Any]) -> Reply:
    return completion("Doc 1: The weather is fine.\nDoc 2: It rains.")


def refuse(body: dict[str, Any]) -> Reply:
    return failure(403, "quota exceeded for this key")


@pytest.mark.parametrize(
    ("answer", "reasons"),
    [
        (leak, ["noisy documents hold a golden answer in 100%, above simulator_check.answer_in_n"]),
        (
            write_of_something_else,
            ["useful documents hold a golden answer in 0%, below simulator_c"],
        ),
        (
            talk,
            ["failed in 100%", "no reply holds a line 'Doc 1: ...'", "simulator.prompt_template"],
        ),
        (refuse, ["failed in 100%", "quota exceeded for this key"]),
    ],
)
def test_a_simulator_that_is_no_use_is_refused_before_anything(
    tmp_path: Path, answer: Callable[[dict[str, Any]], Reply], reasons: list[str]
) -> None:
    with OpenAIServer(answer, models=[MODEL]) as server:
        settings = asking_run(tmp_path, server.url, "policy_steps=1")
        with pytest.raises(ValueError, match="does not suit the training questions") as error:
            run_here(tmp_path / "run", *settings)
        assert len(server.received) <= 24, "nothing but the check was asked"
    for reason in [*reasons, "simulator_check=off"]:
        assert reason in str(error.value)
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_server_of_another_model_is_refused(tmp_path: Path) -> None:
    with (
        OpenAIServer(tell_colours, models=["another"]) as server,
        pytest.raises(ValueError, match=r"simulator.model='tiny' is not served at"),
    ):
        run_here(tmp_path / "run", *asking_run(tmp_path, server.url, "policy_steps=1"))


def test_questions_that_the_scripted_simulator_does_not_know_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`data.files=[mine.jsonl]` on the default experiment."""
    own = next(item for item in small_run(tmp_path) if item.startswith("data.files="))
    with pytest.raises(ValueError, match="golden answer in 0%, below") as error:
        run_here(tmp_path / "run", own, "policy_steps=1", "trainer=cpu")
    assert "The search for 'colour " in str(error.value)
    assert (
        "Training asks questions of train.jsonl, but validation and test ask those of geography"
        in (caplog.text)
    )


def test_an_engine_that_takes_no_wishes_only_has_to_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = [item for item in small_run(tmp_path) if item != "simulator_check=off"]
    found = run_here(tmp_path / "run", *settings, "search=bm25", "policy_steps=1", "test=false")
    assert "hold a golden answer in 0% of the searches (6 training questions)" in caplog.text
    assert "is its corpus about these questions?" in caplog.text
    assert found["simulator_check/answer_in_documents"] == 0 and found["status"] == "completed"


def test_nobody_is_asked_where_no_episode_searches(tmp_path: Path) -> None:
    settings = [item for item in small_run(tmp_path) if item != "simulator_check=off"]
    found = run_here(
        tmp_path / "run",
        *settings,
        "search=none",
        "episode.max_turns=0",
        "policy_steps=1",
        "test=false",
    )
    assert not [name for name in found if name.startswith("simulator_check/")]


def test_all_ranks_learn_what_the_first_one_found(tmp_path: Path) -> None:
    run_ranks(2, check_on_rank, str(tmp_path))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [each["asked"] for each in found] == [
        {"refused": 8, "broken": 4, "good": 8},
        dict.fromkeys(("refused", "broken", "good"), 0),
    ]
    for each in found:
        assert "does not suit the training questions" in each["refused"]
        assert "the engine is broken" in each["broken"]
        assert each["good"] == [1.0, 80.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"questions": -1}, "simulator_check.questions=-1"),
        ({"failed": 1.5}, "simulator_check.failed=1.5: give a share"),
    ],
)
def test_a_bad_bound_is_refused(fields: dict[str, Any], message: str) -> None:
    usual = {"questions": 4, "answer_in_useful": None, "answer_in_noisy": None, "failed": None}
    with pytest.raises(ValueError, match=message):
        SimulatorCheck(**{**usual, **fields})
