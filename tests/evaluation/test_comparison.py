"""Paired significance against numbers worked out by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.evaluation.rows import answers, write_answers
from zerosearch.core.errors import InputError
from zerosearch.core.tables import as_rich
from zerosearch.evaluation.comparison import (
    answers_of,
    compare,
    comparison_table,
    mcnemar,
    randomisation,
)


def test_mcnemar_is_the_binomial_tail() -> None:
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(9, 1) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(3, 3) == 1.0 == mcnemar(0, 0)


def test_randomisation_agrees_with_all_sign_flips() -> None:
    change = torch.tensor([0.5, 0.25, -0.125, 0.5, 0.75, 0.0], dtype=torch.float64)
    moved = change[change != 0]
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 5)
    exact = float(((signs @ moved).abs() >= moved.sum().abs() - 1e-9).double().mean())
    assert randomisation(change, 0) == pytest.approx(exact, abs=0.01)
    assert randomisation(change, 0) == randomisation(change, 0)
    assert randomisation(torch.zeros(4, dtype=torch.float64), 0) == 1.0


def test_a_method_that_is_better_on_most_questions_is_significantly_better() -> None:
    first = answers(["red"] * 40 + ["x"] * 60)
    second = answers(["red"] * 35 + ["x"] * 5 + ["red"] * 30 + ["x"] * 30)
    em = next(each for each in compare(first, second) if each.score == "em")
    assert (em.first, em.second, em.wins, em.losses) == (0.40, 0.65, 30, 5)
    assert em.p_value == pytest.approx(mcnemar(30, 5)) and em.p_value < 1e-4
    assert 0 < em.low < 0.25 < em.high
    assert compare(first, second) == compare(first, list(reversed(second)))


def test_a_method_against_itself_is_no_difference() -> None:
    rows = answers(["red", "x", "a red ball"])
    for each in compare(rows, rows):
        assert each.p_value == 1.0 and each.low == each.high == 0.0


def test_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of 2 and 3 questions 1 stand in only one .* 'q:2'"):
        compare(answers(["x"] * 2), answers(["x"] * 3))
    other: list[dict[str, Any]] = answers(["x"])
    other[0]["question"] = "another?"
    with pytest.raises(ValueError, match=r"'q:0' has 'colour 0\?' and 'another\?' as 'question'"):
        compare(answers(["x"]), other)
    other = [{**answers(["x"])[0], "golden_answers": ["blue"]}]
    with pytest.raises(ValueError, match=r"\['red'\] and \['blue'\] as 'golden_answers'"):
        compare(answers(["x"]), other)
    with pytest.raises(ValueError, match="no question was answered"):
        compare([], [])


def test_a_folder_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    run = tmp_path / "run of 12:30"
    write_answers(run / "answers" / "rag" / "bm25" / "geography.jsonl", ["red"])
    [rows] = answers_of(str(run)).values()
    assert answers_of(f"{run}:rag/bm25") == {"geography": rows}


GOOD = json.dumps(answers(["red"])[0])
DAMAGED = {
    "cut short": (GOOD[:-9], "line 2: not valid JSON"),
    "not UTF-8": ("\udcff\udcfe", "line 2: not valid JSON"),
    "no object": ("[1, 2]", "line 2: no answered question"),
    "without a score": (GOOD.replace('"f1"', '"F1"'), "line 2: no answered question"),
    "a score that is none": (GOOD.replace('"f1": 1.0', '"f1": NaN'), "line 2: no answered"),
    "a score of null": (GOOD.replace('"f1": 1.0', '"f1": null'), "line 2: no answered"),
    "without a name": (GOOD.replace('"id": "q:0"', '"id": null'), "line 2: no answered"),
    "twice": (GOOD.replace('"f1": 1.0', '"f1": 0.0'), "line 2: question 'q:0' stands in .*line 1"),
}


@pytest.mark.parametrize(("line", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_repeated_row_is_refused_with_its_place(
    tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "answers" / "rag" / "nq.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(f"{GOOD}\n{line}\n", errors="surrogateescape")
    with pytest.raises(InputError, match=rf"nq\.jsonl, {said}"):
        answers_of(str(tmp_path))


def test_runs_are_compared_by_their_folders(tmp_path: Path) -> None:
    write_answers(tmp_path / "a" / "answers" / "policy" / "bm25" / "geography.jsonl", ["red", "x"])
    write_answers(tmp_path / "b" / "answers" / "rag" / "bm25" / "geography.jsonl", ["red", "red"])
    write_answers(tmp_path / "b" / "answers" / "cot" / "geography.jsonl", ["x", "red"])
    cells = comparison_table(str(tmp_path / "a"), f"{tmp_path / 'b'}:rag/bm25")
    em = next(row for row in cells if row[2] == "EM")
    assert em[:6] == ["geography", "2", "EM", "50.0", "100.0", "+50.0"] and em[-1] == "1, 0"
    with pytest.raises(ValueError, match=r"give .*b:NAME with one of cot, rag/bm25"):
        comparison_table(str(tmp_path / "a"), str(tmp_path / "b"))
    with pytest.raises(ValueError, match="holds no answers/"):
        comparison_table(str(tmp_path), str(tmp_path / "b"))
    write_answers(tmp_path / "c" / "answers" / "policy" / "bm25" / "nq.jsonl", ["red"])
    with pytest.raises(ValueError, match=r"/a has geography and .*/c has nq; compare two"):
        comparison_table(str(tmp_path / "a"), str(tmp_path / "c"))


@pytest.mark.parametrize("name", ["scripted", "bamboogle"])
def test_a_comparison_fits_a_terminal_of_80_columns_unbroken(name: str, tmp_path: Path) -> None:
    for run, words in (("a", ["red", *["x"] * 59, *["red"] * 40]), ("b", ["x", *["red"] * 99])):
        write_answers(tmp_path / run / "answers" / "policy" / f"{name}.jsonl", words)
    cells = comparison_table(str(tmp_path / "a"), str(tmp_path / "b"))
    assert cells[1][-2:] == ["<0.0001", "59, 1"]
    file = io.StringIO()
    Console(file=file, width=80).print(as_rich(cells, "title"))
    lines = file.getvalue().splitlines()
    for row in cells[1:]:
        assert any(all(cell in line for cell in row) for line in lines), file.getvalue()


def test_a_training_is_compared_by_its_first_and_last_evaluation(tmp_path: Path) -> None:
    def write(run: str, file: str, given: list[str]) -> None:
        path = tmp_path / run / "transcripts" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**row, "uid": row["id"], "id": None} for row in answers(given)]
        rows[-1] |= {"em": None, "cover_em": None, "f1": None}  # its search failed
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("a", "start/bm25/step_000000.jsonl", ["x", "x", "red"])
    write("a", "test/bm25/step_000006.jsonl", ["x", "x", "red"])  # it went on from here
    write("a", "test/bm25/step_000012.rank0.jsonl", ["red", "x", "red"])
    write("a", "train/step_000000.jsonl", ["blue"])
    write("b", "test/bm25/step_000002.jsonl", ["red", "red", "red"])
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for first, second, em in (
        (f"{a}:start", f"{a}:test", ["bm25", "3", "EM", "0.0", "33.3", "+33.3"]),
        (a, b, ["bm25", "3", "EM", "33.3", "66.7", "+33.3"]),
    ):
        assert next(row for row in comparison_table(first, second) if row[2] == "EM")[:6] == em
    with pytest.raises(ValueError, match=r"give .*a:NAME with one of start, test"):
        comparison_table(f"{a}:train", b)


def test_answers_with_separators_of_unicode_are_read(tmp_path: Path) -> None:
    rows = answers(["red\u2028\u0085 x", "red"])
    path = tmp_path / "answers" / "policy" / "nq.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
    assert answers_of(str(tmp_path)) == {"nq": rows}
