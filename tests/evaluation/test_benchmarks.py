"""Seven benchmarks in the forms they are published in, and files that are none of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from zerosearch.evaluation.benchmarks import PublishedSet, check_apart, file_benchmark

FLASHRAG = {"id": "test_0", "question": "Who?", "golden_answers": ["Ada", "Ada L."], "metadata": {}}
# form -> file name, rows, question and golden answers of the first
PUBLISHED: dict[str, tuple[str, list[dict[str, Any]], str, tuple[str, ...]]] = {
    "flashrag": ("test.jsonl", [FLASHRAG], "Who?", ("Ada", "Ada L.")),
    "search_r1": (
        "test.jsonl",
        [
            {
                "id": "test_0",
                "question": "Who?",
                "data_source": "nq",
                "reward_model": {"style": "rule", "ground_truth": {"target": ["Ada"]}},
            }
        ],
        "Who?",
        ("Ada",),
    ),
    "nq_open": (
        "NQ-open.dev.jsonl",
        [{"question": "when was the last time", "answer": ["2009", "May 18, 2018"]}],
        "when was the last time",
        ("2009", "May 18, 2018"),
    ),
    "triviaqa_own": (
        "unfiltered-web-dev.json",
        [
            {
                "Question": "Who was the man behind The Chipmunks?",
                "QuestionId": "tc_2",
                "QuestionSource": "http://www.triviacountry.com/",
                "Answer": {
                    "Value": "David Seville",
                    "Aliases": ["David Seville", "Ross Bagdasarian"],
                    "NormalizedAliases": ["david seville", "ross bagdasarian"],
                    "Type": "WikipediaEntity",
                },
            }
        ],
        "Who was the man behind The Chipmunks?",
        ("David Seville", "Ross Bagdasarian"),
    ),
    "triviaqa_hub": (
        "validation.jsonl",
        [
            {
                "question": "Who was it?",
                "question_id": "tc_3",
                "answer": {"value": "Seville", "aliases": ["D. Seville"], "type": "x"},
            }
        ],
        "Who was it?",
        ("Seville", "D. Seville"),
    ),
    "popqa": (
        "popQA.tsv",
        [
            {
                "id": "4222362",
                "subj": "George Rankin",
                "prop": "occupation",
                "question": "What is George Rankin's occupation?",
                "possible_answers": '["politician", "political leader"]',
            }
        ],
        "What is George Rankin's occupation?",
        ("politician", "political leader"),
    ),
    "hotpotqa": (
        "hotpot_dev_distractor_v1.json",
        [
            {
                "_id": "5a8b57f25542995d1e6f1371",
                "answer": "yes",
                "question": "Were both of the same nationality?",
                "supporting_facts": [["Scott Derrickson", 0]],
                "context": [["Ed Wood (film)", ["Ed Wood is a film."]]],
                "type": "comparison",
                "level": "hard",
            }
        ],
        "Were both of the same nationality?",
        ("yes",),
    ),
    "2wikimultihopqa": (
        "dev.json",
        [
            {
                "_id": "8813f87c0bdd11eba7f7acde48001122",
                "type": "compositional",
                "question": "Who is the mother of the director?",
                "context": [["Polish-Russian War (film)", ["a", "b"]]],
                "supporting_facts": [["Xawery", 1]],
                "evidences": [["x", "director", "y"]],
                "answer": "Małgorzata Braunek",
            }
        ],
        "Who is the mother of the director?",
        ("Małgorzata Braunek",),
    ),
    "musique": (
        "musique_ans_v1.0_dev.jsonl",
        [
            {
                "id": "2hop__460946_294723",
                "paragraphs": [],
                "question": "Who is the spouse of the Green performer?",
                "question_decomposition": [],
                "answer": "Miquette Giraudy",
                "answer_aliases": ["M. Giraudy"],
                "answerable": True,
            },
            {
                "id": "2hop__1",
                "question": "Unanswerable?",
                "answer": "x",
                "answer_aliases": [],
                "answerable": False,
            },
        ],
        "Who is the spouse of the Green performer?",
        ("Miquette Giraudy", "M. Giraudy"),
    ),
    "bamboogle": (
        "bamboogle.csv",
        [{"Question": "Who was president, when it began?", "Answer": "James K. Polk"}],
        "Who was president, when it began?",
        ("James K. Polk",),
    ),
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """In the format of the file's name, as the authors do."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        values: Any = {"Data": rows, "Domain": "x"} if "Question" in rows[0] else rows
        path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)


def load(path: str, **fields: Any) -> list[Any]:
    return PublishedSet(path=path, label="set", **fields).load()


@pytest.mark.parametrize("form", PUBLISHED)
def test_every_published_form_is_read(form: str, tmp_path: Path) -> None:
    name, rows, text, golden = PUBLISHED[form]
    [question] = load(write(tmp_path / name, rows))
    assert (question.text, question.golden_answers) == (text, golden)
    assert question.uid == "set:0"


def test_a_limit_is_the_same_choice_for_everybody_and_grows(tmp_path: Path) -> None:
    rows = [{"question": f"q {n}", "answer": f"a {n}"} for n in range(50)]
    path = write(tmp_path / "x.jsonl", rows)
    ten, twenty = ({q.text for q in load(path, limit=n)} for n in (10, 20))
    assert len(ten) == 10 and ten < twenty and ten != {f"q {n}" for n in range(10)}
    assert ten == {q.text for q in load(path, limit=10)}
    assert len(load(path, limit=None)) == 50 == len(load(path, limit=500))


def test_one_set_out_of_a_file_of_several(tmp_path: Path) -> None:
    rows = [
        {"data_source": "nq" if n % 2 else "tq", "question": f"q {n}", "answer": "a"}
        for n in range(4)
    ]
    path = write(tmp_path / "x.jsonl", rows)
    assert [q.text for q in load(path, only="nq")] == ["q 1", "q 3"]
    with pytest.raises(ValueError, match=r"no rows with data_source='popqa'"):
        load(path, only="popqa")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "x"}], r"line 1: the fields \['text'\] are of no known form; give rows with"),
        ([FLASHRAG, FLASHRAG], r"line 2: the id 'test_0' stands at .*line 1 too"),
        ([{"question": "q", "answer": " "}], r"line 1: .*no golden answer that is not empty"),
        ([{"question": " ", "answer": "a"}], r"line 1: .*an empty question"),
        ([{"question": "q", "possible_answers": "a, b"}], r"it must be a JSON list of strings"),
        ([{"question": "q", "answer": {"value": ""}}], "of no known form"),
        ([{"question": "q", "golden_answers": [1]}], r"must be a string or a list of strings"),
    ],
    ids=["schema", "twice", "no answer", "no question", "popqa", "no alias", "type"],
)
def test_a_bad_row_is_named(rows: list[dict[str, Any]], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load(write(tmp_path / "x.jsonl", rows))


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'.*none.jsonl' does not exist"):
        load(str(tmp_path / "none.jsonl"))
    torn = tmp_path / "torn.csv"
    torn.write_text("Question,Answer\nWho, exactly?,Ada\n")
    with pytest.raises(ValueError, match=r"torn.csv, row 0 .*more or fewer fields"):
        load(str(torn))
    with pytest.raises(ValueError, match=r"limit=0 of set: give 1 or more"):
        load(str(torn), limit=0)


def test_questions_of_two_benchmarks_have_identities_of_their_own(tmp_path: Path) -> None:
    rows = [{"question": "a?", "answer": "a"}], [{"question": "b?", "answer": "b"}]
    a, b = (write(tmp_path / f"{n}.jsonl", [*each]) for n, each in enumerate(rows))
    first, second = file_benchmark(a, label="A"), file_benchmark(b, label="B")
    asked = {"a": first.source.load(), "b": second.source.load()}
    assert [question.uid for each in asked.values() for question in each] == ["A:0", "B:0"]
    check_apart(asked)
    check_apart({"a": first.source.load(), "again": first.source.load()})
    with pytest.raises(ValueError, match=r"a and b both have a question 'A:0': .*b\.label"):
        check_apart({"a": first.source.load(), "b": file_benchmark(b, label="A").source.load()})
