"""Which recorded episodes a policy learns from, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from zerosearch.core.errors import InputError
from zerosearch.tuning.episodes import EpisodeFiles, EpisodeSet, shares_in_words
from zerosearch.tuning.records import RecordedEpisode, RecordedSearch
from zerosearch.types import Document, Shown

ANSWER = "<think> It is Ada. </think> <answer> Ada </answer>"


def episode(name: str, queries: Sequence[str] = ("a", "b"), **fields: Any) -> RecordedEpisode:
    """A right one: `name` is the question and the number of the attempt."""
    usual: dict[str, Any] = {
        "id": name,
        "question": f"Who is {name.partition('/')[0]}?",
        "golden_answers": ("Ada",),
        "searches": tuple(
            found(turn, query, "Nothing." if turn < len(queries) - 1 else "Ada did.")
            for turn, query in enumerate(queries)
        ),
        "answer": "Ada",
        "correct": True,
        "texts": (
            *(f"<think> hm </think> <search> {query} </search>" for query in queries),
            ANSWER,
        ),
    }
    return RecordedEpisode(**usual | fields)


def found(turn: int, query: str, text: str) -> RecordedSearch:
    return RecordedSearch(turn=turn, query=query, documents=(Document(text=text),))


def save(path: Path, episodes: Sequence[RecordedEpisode]) -> str:
    path.write_text("".join(json.dumps(each.as_row()) + "\n" for each in episodes))
    return str(path)


def load(folder: Path, episodes: Sequence[RecordedEpisode], **fields: Any) -> EpisodeSet:
    path = save(folder / "episodes.jsonl", episodes)
    return EpisodeFiles(train=path, **{"validation_share": 0.0, **fields}).load()


def ids(episodes: Sequence[RecordedEpisode]) -> list[str]:
    return [each.id for each in episodes]


def test_right_ones_that_searched_are_taken_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    episodes = [
        episode("q1/0", correct=False, answer="Bob"),
        episode("q1/1", ()),
        episode("q2/0"),
        episode("q3/0"),
        episode("q3/1"),
        episode("q4/0", ["a"]),
    ]
    with caplog.at_level(logging.INFO):
        assert ids(load(tmp_path, episodes, per_question=None).train) == ["q2/0", "q3/0", "q4/0"]
    assert "3 of 6 recorded episodes for training, of 3 questions" in caplog.text
    for reason in ("1 wrong", "1 with fewer searches than 1", "1 repeated"):
        assert reason in caplog.text
    assert "by number of searches: 0: 0.0%, 1: 33.3%, 2: 66.7%, 3 or more: 0.0%" in caplog.text
    assert "searches twice" not in caplog.text
    every = load(tmp_path, episodes, only_correct=False, min_searches=0, per_question=None)
    assert ids(every.train) == ["q1/0", "q1/1", "q2/0", "q3/0", "q4/0"]


def test_of_several_attempts_the_best_is_kept(tmp_path: Path) -> None:
    episodes = [
        episode("guessed/0", ["a"], searches=(found(0, "a", "Bob did."),)),
        episode("guessed/1", ["a", "b"]),
        episode("repeats/0", ["a", "a"]),
        episode("repeats/1", ["a", "b", "c"]),
        episode("knew/0", searches=(found(0, "a", "Ada did."), found(1, "b", "Ada did."))),
        episode("knew/1", ["a", "b", "c"]),
        episode("knew/2", ["a"]),
    ]
    assert ids(load(tmp_path, episodes).train) == ["guessed/1", "repeats/1", "knew/1"]
    two = load(tmp_path, episodes, per_question=2).train
    assert ids(two)[-2:] == ["knew/1", "knew/2"] and len(two) == 6


def test_a_document_that_the_agent_was_not_shown_does_not_count(tmp_path: Path) -> None:
    documents = (Document(text="Nothing."), Document(text="Ada did."))
    kept = [RecordedSearch(turn=turn, query="ab"[turn], documents=documents) for turn in (0, 1)]
    unread = [dataclasses.replace(each, shown=Shown(documents=1)) for each in kept]
    read = dataclasses.replace(kept[1], shown=Shown(documents=2))
    guessed = episode("q/0", ["a"], searches=(unread[0],))
    honest = episode("q/1", ["a", "b"], searches=(unread[0], read))
    assert ids(load(tmp_path, [guessed, honest]).train) == ["q/1"]
    cut = Document(text="Nothing. " * 9 + "Ada did.")
    part = dataclasses.replace(
        unread[0], documents=(cut,), shown=Shown(documents=1, cut_at=len(cut.text) - 8)
    )
    assert ids(load(tmp_path, [episode("q/0", ["a"], searches=(part,)), honest]).train) == ["q/1"]
    old = episode("q/0", ["a"], searches=(kept[0],))  # of a file that does not say what was read
    assert ids(load(tmp_path, [old, honest]).train) == ["q/0"]


def test_nobody_who_searches_twice_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(tmp_path, [episode("q1/0", ["a"]), episode("q2/0", ["a"])])
    assert "no episode searches twice" in caplog.text


def test_questions_are_held_out_whole_and_always_the_same(tmp_path: Path) -> None:
    episodes = [episode(f"q{n}/{attempt}", [f"{attempt}"]) for n in range(60) for attempt in (0, 1)]
    chosen = load(tmp_path, episodes, per_question=None, validation_share=0.25)
    assert len(chosen.train) + len(chosen.validation) == 120
    questions = [{each.question for each in part} for part in (chosen.train, chosen.validation)]
    assert not questions[0] & questions[1] and 5 <= len(questions[1]) <= 25
    few = load(tmp_path, episodes, per_question=None, validation_share=0.25, limit=10)
    assert few.validation == chosen.validation and len(few.train) == 10
    assert {*ids(few.train)} < {*ids(chosen.train)}
    assert load(tmp_path, episodes, validation_share=0.25, limit=10) == load(
        tmp_path, episodes, validation_share=0.25, limit=10
    )


def test_files_of_several_rounds_and_files_for_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = save(tmp_path / "round_1.jsonl", [episode("q1/0", ["a", "b", "c"]), episode("q2/0")])
    again = save(tmp_path / "round_2.jsonl", [episode("q1/0", ["a", "b"]), episode("q3/0")])
    held_out = save(tmp_path / "validation.jsonl", [episode("q2/0")])
    with caplog.at_level(logging.INFO):
        chosen = EpisodeFiles(train=[first, again], validation=held_out).load()
    assert [(each.id, len(each.searches)) for each in chosen.train] == [("q1/0", 3), ("q3/0", 2)]
    assert ids(chosen.validation) == ["q2/0"]
    assert "1 episodes ask what validation asks" in caplog.text
    pattern = EpisodeFiles(train=str(tmp_path / "round_*.jsonl"), validation=held_out).load()
    assert pattern == chosen


MALFORMED = {
    "nobody knows what the agent wrote": {"texts": ()},
    "goes on after a closing tag": {"texts": ("<search> a </search> hm", ANSWER)},
    "goes on after a closing": {"texts": ("<search> a </search><search> b </search>", ANSWER)},
    "answers before the last turn": {"texts": ("<answer> Ada </answer>", ANSWER)},
    "writes documents itself": {"texts": ("<information> Ada </information>", ANSWER)},
    "'texts' asks 'b' and 'searches' has 'a'": {"texts": ("<search> b </search>", ANSWER)},
    "'texts' makes 0 searches and 'searches' has 1": {"texts": (ANSWER,)},
    "'texts' makes 2 searches and": {"texts": (*("<search> a </search>",) * 2, ANSWER)},
    "holds a control token": {"texts": ("<search> a </search>", f"<|im_end|>{ANSWER}")},
    "holds a control": {"texts": ("<think>[INST]</think><search> a </search>", ANSWER)},
}


@pytest.mark.parametrize(("message", "fields"), MALFORMED.items())
def test_what_no_policy_could_have_sampled_is_refused_with_file_and_row(
    tmp_path: Path, message: str, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    bad = episode("bad/0", ["a"], **fields)
    with pytest.raises(InputError, match=r"episodes\.jsonl, line 2: 'texts'") as caught:
        load(tmp_path, [episode("q/0"), bad])
    assert message in str(caught.value)
    with caplog.at_level(logging.INFO):
        assert ids(load(tmp_path, [episode("q/0"), bad], skip_malformed=True).train) == ["q/0"]
    assert "1 malformed" in caplog.text
    wrong = dataclasses.replace(bad, correct=False)
    assert ids(load(tmp_path, [episode("q/0"), wrong]).train) == ["q/0"], "it is not used"


def test_a_last_turn_may_fail_where_wrong_episodes_are_taken(tmp_path: Path) -> None:
    ended = [
        episode("search/0", ["a"], texts=("<search> a </search>", "<search> more </search>")),
        episode("nothing/0", ["a"], texts=("<search> a </search>", "hm")),
    ]
    wrong = [dataclasses.replace(each, correct=False, answer=None) for each in ended]
    assert len(load(tmp_path, wrong, only_correct=False).train) == 2


def test_an_episode_that_a_hint_led_on_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    led_on = episode("hint/0", ["a"], texts=("I think.", "<search> a </search>", ANSWER))
    with caplog.at_level(logging.INFO):
        assert ids(load(tmp_path, [episode("q/0"), led_on]).train) == ["q/0"]
    assert "left out: 1 with a turn that neither searches nor answers" in caplog.text


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"of 1 episodes none is left for training \(1 wrong\)"):
        load(tmp_path, [episode("q/0", correct=False)])
    with pytest.raises(InputError, match="all 1 episodes are of questions that are held out"):
        load(tmp_path, [episode("q/0")], validation_share=0.999999)


@pytest.mark.parametrize(
    "fields",
    [{"validation_share": 1.0}, {"min_searches": -1}, {"per_question": 0}, {"limit": 0}],
)
def test_numbers_out_of_range(fields: dict[str, Any]) -> None:
    [(name, value)] = fields.items()
    with pytest.raises(InputError, match=f"{name}={value} of episodes: give"):
        EpisodeFiles(train="episodes.jsonl", **fields)


def test_shares_are_of_all_episodes() -> None:
    said = shares_in_words({0: 1, 1: 1, 3: 1, 7: 1})
    assert said.endswith(
        "4 episodes by number of searches: 0: 25.0%, 1: 25.0%, 2: 0.0%, 3 or more: 50.0%"
    )
