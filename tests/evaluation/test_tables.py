"""Cells of a table, and its forms."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from tests.evaluation.rows import answers
from zerosearch.core.tables import as_markdown
from zerosearch.evaluation.cells import cell_metrics, cell_times
from zerosearch.evaluation.table_files import show, write_tables
from zerosearch.evaluation.tables import (
    Results,
    as_csv,
    as_latex,
    detail_table,
    main_table,
    merged,
)

RED, HALF = (cell_metrics(answers(given)) for given in (["red"] * 4, ["red", "x", None, "a red"]))


def results(**benchmarks: str) -> Results:
    """Two methods; the second lacks the last benchmark."""
    names = list(benchmarks)
    cells = {("policy/search", name): RED for name in names}
    cells |= {("cot", name): HALF for name in names[: max(1, len(names) - 1)]}
    rows = {"policy/search": "policy (bm25)", "cot": "CoT & co_2"}
    return Results(benchmarks=benchmarks, rows=rows, cells=cells)


def test_metrics_of_a_cell_count_every_question() -> None:
    assert (HALF["em"], HALF["cover_em"], HALF["answered"], HALF["count"]) == (0.5, 0.5, 0.75, 4)
    assert HALF["f1"] == pytest.approx(0.5) and HALF["em_low"] <= 0.5 <= HALF["em_high"]
    assert (HALF["searches"], HALF["sampled_tokens"], HALF["cost_usd"]) == (1, 7, 0.5)
    lost = cell_metrics(answers(["red", "red"], error="engine down"))
    assert (lost["em"], lost["failed"], lost["answered"]) == (0, 1, 0)


def test_latency_of_an_episode_and_throughput_of_all_are_two_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = cell_times(answers(["red", "red"]))
    assert (times["episode_s_mean"], times["episode_s_p50"]) == (0.25, 0.25)
    assert (times["s_per_question"], times["questions_per_s"]) == (0.125, 8)
    one = results(nq="NQ")
    show(one, dict.fromkeys(one.cells, times))
    shown = capsys.readouterr().out
    assert "latency of an episode, throughput of all" in " ".join(shown.split())
    [line] = [line for line in shown.splitlines() if "policy" in line]
    assert line.split()[-2:] == ["0.25", "8"]


def test_the_papers_rows_stand_beside_ours() -> None:
    cells = main_table(results(nq="NQ", bamboogle="Bamboogle"))
    assert cells[0] == ["method", "NQ", "Bamboogle", "avg"]
    assert ["Qwen2.5-7B ZeroSearch-base*", "42.40", "33.33", "37.86"] in cells
    assert cells[-2:] == [
        ["policy (bm25)", "100.00", "100.00", "100.00"],
        ["CoT & co_2", "50.00", "", ""],
    ]
    few = main_table(results(nq="NQ"), policies=["Llama-3.2-3B"])
    assert len(few) == 1 + 2 + 2 and all(len(row) == 2 for row in few)


def test_the_papers_averages_are_those_it_prints() -> None:
    seven = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
    cells = main_table(results(**dict.fromkeys(seven, "x")))
    printed = {row[0]: row[-1] for row in cells}
    assert printed["Qwen2.5-7B ZeroSearch-base*"] == "40.93"
    assert printed["Qwen2.5-7B RAG*"] == "25.51" and printed["Qwen2.5-7B Direct answer*"] == "15.17"
    assert printed["Llama-3.2-3B ZeroSearch-inst*"] == "30.98"


def test_a_benchmark_of_our_own_has_no_row_of_the_paper() -> None:
    assert [row[0] for row in main_table(results(geography="geography"))[1:]] == [
        "policy (bm25)",
        "CoT & co_2",
    ]


def test_details_show_intervals() -> None:
    heading, first, second = detail_table(results(geography="geography"))
    assert first[:4] == ["policy (bm25)", "geography", "4", "100.0 [100.0, 100.0]"]
    assert dict(zip(heading, second, strict=True))["answered %"] == "75.0"


def test_csv_holds_every_number_unrounded() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(results(geography="g", nq="NQ")))))
    assert [(row["method"], row["benchmark"]) for row in rows] == [
        ("policy/search", "geography"),
        ("policy/search", "nq"),
        ("cot", "geography"),
    ]
    assert {name: float(rows[2][name]) for name in HALF} == HALF


def test_tables_of_several_runs_are_merged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tables(tmp_path / name, results(nq="NQ", popqa="PopQA"), None)
    one = merged([tmp_path / "a"])
    assert one == results(nq="NQ", popqa="PopQA")
    both = merged([tmp_path / "a", tmp_path / "b"])
    assert list(both.rows) == ["policy/search", "cot", "b:policy/search", "b:cot"]
    assert len(both.cells) == 6 and len(main_table(both, policies=[])) == 5
    with pytest.raises(ValueError, match=r"c holds no table\.csv"):
        merged([tmp_path / "c"])
    (tmp_path / "a" / "table.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="no table of an evaluation"):
        merged([tmp_path / "a"])


def test_markdown_and_latex_keep_signs_that_mean_something_to_them() -> None:
    cells = [["method", "a|b"], ["CoT & co_2", "50.00"], ["x", "60.00"]]
    assert as_markdown(cells).splitlines()[:2] == ["| method | a\\|b |", "| --- | --- |"]
    latex = as_latex(cells)
    assert r"CoT \& co\_2 & 50.00 \\" in latex and r"x & \textbf{60.00} \\" in latex
    assert latex.startswith(r"\begin{tabular}{lr}")
