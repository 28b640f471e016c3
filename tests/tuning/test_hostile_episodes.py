"""Whatever stands in a file of demonstrations is refused with file and row, before a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig

from tests.helpers.configs import compose_config
from tests.helpers.demonstrations import make_record, write_episodes
from zerosearch.assembly import TuningRun, assemble_tuning
from zerosearch.core.errors import InputError

Tuning = tuple[TuningRun, DictConfig, Path]

ANSWER = "<think>so</think><answer> red </answer>"
GOOD = json.loads(json.dumps(make_record(1).as_row()))
FOUND = GOOD["searches"][0]


def asked(number: int) -> str:
    return f"<search> q{number} </search>"


ASK = asked(0)


def row(**fields: Any) -> str:
    return json.dumps({**GOOD, **fields})


def searched(**fields: Any) -> str:
    return row(searches=[{**FOUND, **fields}])


def asks(query: str) -> str:
    """An episode that is right in all but its query."""
    texts = [f"<search> {query} </search>", ANSWER]
    return row(searches=[{**FOUND, "query": query}], texts=texts)


OTHER = row(question="Which colour has 2?")
MANY = [{**FOUND, "query": f"q{n}"} for n in range(9)]
MARKS = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "[/INST]", "<｜end▁of▁sentence｜>", "</s>"]
HOSTILE: dict[str, tuple[str, str]] = {  # by what it is: the line, and what is said of it
    "cut short": (row()[:90], "not valid JSON"),
    "no JSON": ("{'question': 'Who?'}", "not valid JSON"),
    "a list": ("[1, 2]", "must be an object"),
    "a number": ("7", "must be an object"),
    "null": ("null", "must be an object"),
    "deep": ('{"searches": ' * 3000 + "1" + "}" * 3000, "deep|'searches' is"),
    "too many digits": (row().replace('"turn": 0', '"turn": ' + "9" * 5000), "digits"),
    "a number that is none": (row().replace('"turn": 0', '"turn": NaN'), "'turn' is nan"),
    "turn below 0": (searched(turn=-1), "'turn' is -1"),
    "turn is true": (searched(turn=True), "'turn' is True"),
    "no id": (row(id=None), "'id' is None"),
    "no question": (row(question=""), "'question' is ''"),
    "question is a list": (row(question=["Who?"]), r"'question' is \['Who"),
    "half a character asked": (row(question="Wh\ud83d?"), "'question' is .*half a character"),
    "half a character written": (row(texts=[ASK, "\udc00" + ANSWER]), "'texts' .*half a char"),
    "half a character sought": (asks("q\ud83d"), "'query' is .*half a character"),
    "half a character known": (row(golden_answers=["\ud83d"]), "'golden_answers' .*half a char"),
    "half a character answered": (row(answer="\ud83d"), "'answer' is .*half a character"),
    "golden answers are a number": (row(golden_answers=7), "'golden_answers' is 7"),
    "golden answers are none": (row(golden_answers=[]), "'golden_answers' is"),
    "a golden answer is null": (row(golden_answers=[None]), r"'golden_answers' is \[None"),
    "golden answers in brackets": (row(golden_answers="[red, 'blue']"), "looks like a list and is"),
    "a golden answer is nested": (row(golden_answers=[["red"]]), r"'golden_answers' is \[\["),
    "answer is a number": (row(answer=7), "'answer' is 7; give a text, or null"),
    "answer is a list": (row(answer=["red"]), r"'answer' is \['red'\]"),
    "correct is a word": (row(correct="false"), "'correct' is 'false'; give true or false"),
    "correct is a number that is none": (
        row().replace('"correct": true', '"correct": NaN'),
        "'correct' is nan",
    ),
    "searches are a text": (row(searches="q0"), "'searches' is 'q0'"),
    "a search is a text": (row(searches=["q0"]), r"'searches' is \['q0'\]"),
    "searches are missing": (row(searches=None), "'searches' is None"),
    "query is null": (searched(query=None), "'query' is None"),
    "query is a number": (searched(query=7), "'query' is 7"),
    "documents are a text": (searched(documents="red"), "'documents' is 'red'"),
    "documents are nested": (searched(documents=[["red"]]), r"a document is \['red'\]"),
    "a document within one": (
        searched(documents=[{"text": {"text": "red"}}]),
        r"a document is \{'text': \{",
    ),
    "a title is an object": (
        searched(documents=[{"text": "red", "title": {"a": 1}}]),
        "a document is",
    ),
    "shown is below 0": (searched(shown={"documents": -1}), "'shown' is .*0 or more"),
    "shown is true": (searched(shown={"documents": True}), "'shown' is"),
    "shown is more than there was": (searched(shown={"documents": 9}), "the agent read 9 whole"),
    "texts are a text": (row(texts=ANSWER), "'texts' is .*give a list"),
    "a text is null": (row(texts=[ASK, None]), "'texts' is .*give a list"),
    "no turns": (row(texts=[]), "'texts' is empty"),
    "only an empty turn": (row(texts=[""]), "'texts' makes 0 searches"),
    "an empty turn at the end": (row(texts=[ASK, ""]), "it answers None"),
    "a query that was not recorded": (row(texts=["<search> x </search>", ANSWER]), "asks 'x'"),
    "a search that was not recorded": (row(texts=[ASK, asked(1), ANSWER]), "makes 2 searches and"),
    "text after the answer": (row(texts=[ASK, f"{ANSWER} red"]), "goes on after a closing tag"),
    "documents of its own": (row(texts=[ASK, f"<information>{ANSWER}"]), "writes documents itself"),
    "another answer": (row(answer="blue"), "it answers 'red'"),
    "a turn too long": (
        row(texts=[ASK, f"<think>{'so ' * 400}</think>{ANSWER}"]),
        "episode.max_turn_tokens=64",
    ),
    "a question too long": (row(question="Which colour " * 200), "episode.max_prompt_tokens=96"),
    "a context too long": (
        row(
            question="Which colour has " + "so " * 20,
            searches=[{**each, "documents": ["red " * 400]} for each in MANY[:4]],
            texts=[*(f"<think>{'so ' * 15}</think>{asked(n)}" for n in range(4)), ANSWER],
        ),
        "episode.max_context_tokens=768",
    ),
    "a key twice, of which the last one counts": (
        row()[:-1] + ', "answer": "blue"}',
        "it answers 'red', and the answer on record is 'blue'",
    ),
    "too many turns": (
        row(searches=MANY, texts=[*(asked(n) for n in range(9)), ANSWER]),
        "episode.max_turns=4",
    ),
    **{f"{mark} in a thought": (row(texts=[f"{mark}{ASK}", ANSWER]), "control") for mark in MARKS},
    **{f"{mark} in a query": (asks(mark), "control token") for mark in MARKS},
}  # fmt: skip


@pytest.fixture(scope="module")
def tuning(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """A run of the command, its configuration, and the file that it reads."""
    folder = tmp_path_factory.mktemp("hostile")
    held_out = write_episodes(folder / "held_out.jsonl", [make_record(0)])
    words = ["data=episodes", "model=quickstart", "episode=plain", "trainer=cpu", "logger=none"]
    files = [f"data.files.train={folder}/hostile.jsonl", f"data.files.validation={held_out}"]
    cfg = compose_config(folder, *words, *files, name="tune")
    return assemble_tuning(cfg), cfg, folder / "hostile.jsonl"


def read(tuning: Tuning, *lines: str) -> None:
    run, cfg, file = tuning
    file.write_text("".join(f"{line}\n" for line in lines))
    run.data = hydra.utils.instantiate(cfg.data)
    run.read_examples()


@pytest.mark.parametrize(("line", "said"), HOSTILE.values(), ids=HOSTILE)
def test_it_is_refused_with_file_and_row_before_a_model_is_loaded(
    tuning: Tuning, line: str, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read(tuning, OTHER, line)
    assert f"{tuning[2]}, line 2: " in str(caught.value)
    assert tuning[0].module.model is None


def test_the_row_that_they_are_made_of_is_taken(tuning: Tuning) -> None:
    read(tuning, OTHER, row())
    assert len(tuning[0].data.examples.train) == 2
