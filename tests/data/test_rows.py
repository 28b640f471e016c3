"""Rows of every published form become questions; bad rows are errors that name place and remedy."""

from typing import Any

import numpy as np
import pytest

from tests.helpers.waiting import guarded
from zerosearch.data.rows import Columns, question_to_row, row_to_question
from zerosearch.types import Question

DEEP: list[Any] = []
for _ in range(20_000):
    DEEP = [DEEP]


def read(row: dict[str, Any], **kwargs: Any) -> Question:
    return row_to_question(row, location="qa.parquet, row 7", source="mine", **kwargs)


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"golden_answers": ["Rome", "Roma"]}, ("Rome", "Roma")),
        ({"golden_answers": np.array(["Rome", "Roma"], dtype=object)}, ("Rome", "Roma")),
        ({"golden_answers": "Rome"}, ("Rome",)),
        ({"reward_model": {"style": "rule", "ground_truth": {"target": ["Rome"]}}}, ("Rome",)),
        ({"reward_model": {"ground_truth": {"target": np.array(["Rome"])}}}, ("Rome",)),
        ({"reward_model": {"ground_truth": {"target": "Rome"}}}, ("Rome",)),
        ({"reward_model": {"ground_truth": ["Rome", "Roma"]}}, ("Rome", "Roma")),
        ({"reward_model": {"ground_truth": np.array(["Rome"])}}, ("Rome",)),
        ({"reward_model": {"ground_truth": "Rome<|answer_split|>Roma"}}, ("Rome", "Roma")),
        ({"answer": "Rome"}, ("Rome",)),
        ({"answer": ["Rome", "Roma"]}, ("Rome", "Roma")),
        ({"golden_answers": None, "reward_model": None, "answer": "Rome"}, ("Rome",)),
        ({"golden_answers": ["Rome"], "answer": "Milan"}, ("Rome",)),
        ({"answer": [" Rome ", "", "The"]}, ("Rome", "The")),  # "The" normalises to nothing
        ({"reward_spec": {"style": "rule", "ground_truth": {"target": ["Rome"]}}}, ("Rome",)),
        ({"reward_spec": {"ground_truth": ["Rome", "Roma"]}}, ("Rome", "Roma")),  # SkyRL
        ({"golden_answers": "['Rome', 'Roma']"}, ("Rome", "Roma")),  # CSV: Python's text of a list
        ({"golden_answers": '["Rome", "Roma"]'}, ("Rome", "Roma")),
        ({"golden_answers": """["It's", 'a "b", c\\n']"""}, ("It's", 'a "b", c')),
        ({"reward_model": {"ground_truth": {"target": '["Rome"]'}}}, ("Rome",)),
        ({"answer": "[Rome]<|answer_split|>Roma"}, ("[Rome]", "Roma")),
    ],
)
def test_golden_answers_in_every_form(row: dict[str, Any], answers: tuple[str, ...]) -> None:
    assert read({"question": "Capital of Italy?", **row}).golden_answers == answers


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "user", "content": "Capital of Italy?"}],
        np.array([{"role": "user", "content": "Capital of Italy?"}], dtype=object),
        "Capital of Italy?",
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Capital of France?"},
            {"role": "assistant", "content": "Paris"},
            {"role": "user", "content": " Capital of Italy? "},
        ],
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "Capital of"}, {"text": " Italy?"}],
            }
        ],
        [{"role": "user", "content": np.array([{"type": "text", "text": "Capital of Italy?"}])}],
    ],
)
def test_question_from_the_users_text_of_the_prompt(prompt: Any) -> None:
    assert read({"prompt": prompt, "answer": "Rome"}).text == "Capital of Italy?"
    assert read({"question": "Own?", "prompt": prompt, "answer": "Rome"}).text == "Own?"


INSTRUCTION = (  # the form of verl's and SkyRL's preprocessing of Search-R1's data
    "Answer the given question. Reason in <think> and </think>, call <search> query </search>, and "
    "answer in <answer> and </answer>, such as <answer> Beijing </answer>. Question: "
)


@pytest.mark.parametrize("reward", ["reward_model", "reward_spec"])
def test_the_question_inside_a_preprocessed_prompt(reward: str) -> None:
    prompt = [
        {"role": "system", "content": "You are a helpful and harmless assistant."},
        {"role": "user", "content": f"{INSTRUCTION}Capital of Italy?"},
    ]
    row = {
        "data_source": "searchR1_nq",
        "prompt": prompt,
        reward: {"style": "rule", "ground_truth": {"target": np.array(["Rome"], dtype=object)}},
        "extra_info": {"index": 3, "question": "Capital of Italy?", "split": "train"},
    }
    question = read(row)
    assert (question.text, question.golden_answers) == ("Capital of Italy?", ("Rome",))
    for without in ({}, {"question": None}, {"question": ""}):  # nothing but the instruction
        with pytest.raises(ValueError, match=r"row 7: field 'prompt' .*tag <think> .*extra_info"):
            read({**row, "extra_info": without})


def test_identity_source_and_metadata() -> None:
    row = {"question": "Q?", "answer": "A", "extra_info": {"index": 0, "split": "train", "x": None}}
    question = read(row, uid="mine:7")
    assert (question.uid, question.source) == ("mine:7", "mine")
    assert question.metadata == {"index": 0, "split": "train"}
    assert read(row).uid == "qa.parquet, row 7"  # never the index, which restarts per data set
    assert read({**row, "data_source": "nq"}).source == "nq"
    nameless = row_to_question({"question": "Q?", "answer": "A"}, location="f", source=None)
    assert nameless.source == "unknown"


def test_columns_can_be_renamed() -> None:
    columns = Columns(question="query", golden_answers="gold")
    question = read({"query": "Capital of Italy?", "gold": ["Rome"]}, columns=columns)
    assert (question.text, question.golden_answers) == ("Capital of Italy?", ("Rome",))


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"answer": "Rome"}, ["'question' and 'prompt'", "missing", "columns.question="]),
        ({"query": "Q?", "answer": "Rome"}, ["['answer', 'query']"]),
        ({"question": " \n", "answer": "Rome"}, ["'question'", "' \\n'", "empty question"]),
        (
            {"prompt": [{"role": "user", "content": ""}], "answer": "Rome"},
            ["'prompt'", "empty question"],
        ),
        ({"question": 3, "answer": "Rome"}, ["'question' is 3 (int)", "must be a string"]),
        ({"prompt": 3, "answer": "Rome"}, ["'prompt' is 3 (int)", "{role, content}"]),
        ({"prompt": [{"role": "system", "content": "x"}], "answer": "A"}, ["role 'user'"]),
        ({"prompt": ["Q?"], "answer": "Rome"}, ["'prompt'", "{role, content}"]),
        ({"question": "Q?"}, ["no golden answers", "'golden_answers'", "'answer'", "missing"]),
        ({"question": "Q?", "golden_answers": []}, ["'golden_answers' is []", "at least one"]),
        ({"question": "Q?", "answer": ["", "  "]}, ["'answer'", "at least one"]),
        ({"question": "Q?", "answer": "<|answer_split|>"}, ["'answer'", "at least one"]),
        ({"question": "Q?", "answer": 1914}, ["'answer' is 1914 (int)", "quote numbers"]),
        ({"question": "Q?", "answer": ["a", None]}, ["'answer'", "list of strings"]),
        (
            {"question": "Q?", "reward_model": {"ground_truth": {"answer": "Rome"}}},
            ["'reward_model.ground_truth'", "'target'"],
        ),
        ({"question": "Q?", "reward_model": "Rome"}, ["'reward_model'", "'ground_truth'"]),
        (
            {"question": "Q?", "reward_model": {"ground_truth": {"target": []}}},
            ["'reward_model.ground_truth.target' is []"],
        ),
        ({"question": "Q?", "answer": "A", "extra_info": 3}, ["'extra_info' is 3 (int)"]),
        ({"extra_info": {"question": 3}, "answer": "A"}, ["'question' is 3 (int)"]),
        ({"question": f"{INSTRUCTION}Q?", "answer": "A"}, ["'question'", "<think>", "alone"]),
        (
            {"prompt": "[{'role': 'user', 'content': 'Q?'}]", "answer": "A"},
            ["'prompt'", "its text"],
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "A"},
            ["'prompt'"],
        ),
        (
            {"question": "Q?", "answer": "['Rome' 'Roma']"},
            ["'answer'", "looks like a list"],
        ),  # numpy
        ({"question": "Q?", "answer": "[Rome, Roma]"}, ["'answer'", "looks like a list"]),
        ({"question": "Q?", "answer": "[1, 2]"}, ["'answer'", "looks like a list"]),
        ({"question": "Q?", "answer": "[]"}, ["'answer'", "at least one"]),
        ({"question": "Q?", "answer": r"['\x']"}, ["'answer'", "neither JSON's nor Python's"]),
        ({"question": "Q\ud83d?", "answer": "A"}, ["'question'", "half a character", "at 1"]),
        ({"question": "Q?", "answer": ["A", "\udc00"]}, ["'golden answers'", "half a character"]),
        ({"question": "Q?", "answer": "A", "data_source": "\ud800"}, ["'data_source'", "half a"]),
        (
            {"question": "Q?", "answer": "A", "extra_info": {"x": ["\ud800"]}},
            ["'extra_info'", "half"],
        ),
        ({"question": "Q?", "answer": "A", "extra_info": {"x": DEEP}}, ["'extra_info'", "64 deep"]),
        ({"question": DEEP, "answer": "A"}, ["'question' is [[["]),
        ({"question": "Q?", "answer": DEEP}, ["'answer' is [[["]),
        ({"question": "Q?", "answer": "A", "data_source": 3}, ["'data_source' is 3 (int)"]),
    ],
)
def test_invariant_20_bad_rows_name_place_field_and_remedy(
    row: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"^qa\.parquet, row 7: ") as error:
        read(row)
    assert [part for part in parts if part not in str(error.value)] == []


def test_question_to_row_has_the_published_columns() -> None:
    question = Question(
        uid="geo:1", text="Q?", golden_answers=("A", "B"), source="geo", metadata={"hops": 2}
    )
    assert question_to_row(question, "train", 4) == {
        "data_source": "geo",
        "prompt": [{"role": "user", "content": "Q?"}],
        "question": "Q?",
        "golden_answers": ["A", "B"],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": ["A", "B"]}},
        "extra_info": {"hops": 2, "split": "train", "index": 4},
    }


@pytest.mark.parametrize("dropped", [set(), {"question"}, {"golden_answers"}])
def test_round_trip_through_each_of_the_redundant_columns(dropped: set[str]) -> None:
    question = Question(uid="geo:1", text="Q?", golden_answers=("A", "B"), source="geo")
    row = {k: v for k, v in question_to_row(question, "train", 4).items() if k not in dropped}
    back = read(row, uid="geo:1")
    assert (back.text, back.golden_answers, back.source) == ("Q?", ("A", "B"), "geo")


def test_spaces_in_the_text_of_a_list_are_not_gone_through_again_and_again() -> None:
    with guarded(), pytest.raises(ValueError, match="looks like a list"):
        read({"question": "Q?", "answer": f"['Rome'{' ' * 200_000}x]"})
