"""Official figures beside ours: expected values are what the authors' own programs returned."""

from __future__ import annotations

import pytest

from tests.evaluation.rows import answers
from zerosearch.evaluation.benchmarks import Benchmark, PublishedSet
from zerosearch.evaluation.cells import cell_metrics
from zerosearch.evaluation.official import official_scores
from zerosearch.evaluation.tables import Results, as_csv, detail_table, from_csv


@pytest.mark.parametrize(
    ("answer", "golden", "hotpotqa", "triviaqa"),
    [
        ("the Beatles!", ["Beatles"], (1, 1), (1, 1)),
        ("Paris in France", ["Rome", "Paris"], (0, 0.5), (0, 0.5)),
        ("yes no", ["yes"], (0, 0), (0, 2 / 3)),  # the guard of HotpotQA alone
        ("no", ["no way"], (0, 0), (0, 2 / 3)),
        ("noanswer", ["NoAnswer"], (1, 1), (1, 1)),
        ("well-known", ["well known"], (0, 0), (1, 1)),  # punctuation becomes a space
        ("rock_roll", ["rock roll"], (0, 0), (1, 1)),
        ("O’Neill", ["O'Neill"], (0, 0), (1, 1)),  # typographic quotes
        ("“Heroes”", ["Heroes"], (0, 0), (0, 0)),
        ("Rene\u0301e", ["Ren\u00e9e"], (0, 0), (0, 0)),  # where ours are 1
        ("The", ["an"], (1, 0), (1, 0)),  # nothing is left of either
        (None, ["The"], (0, 0), (0, 0)),
    ],
)
def test_scores_are_those_of_the_official_programs(
    answer: str | None,
    golden: list[str],
    hotpotqa: tuple[float, float],
    triviaqa: tuple[float, float],
) -> None:
    assert official_scores("hotpotqa", answer, golden) == pytest.approx(hotpotqa)
    assert official_scores("triviaqa", answer, golden) == pytest.approx(triviaqa)


def test_they_stand_in_the_table_where_a_benchmark_has_a_scorer() -> None:
    given = answers(["red", "a red", "red x", None])
    cells = {
        ("policy", "triviaqa"): cell_metrics(given, "triviaqa"),
        ("policy", "nq"): cell_metrics(given),
    }
    one = Results(benchmarks={"triviaqa": "T", "nq": "NQ"}, rows={"policy": "p"}, cells=cells)
    heading, *lines = detail_table(one)
    shown = {line[1]: dict(zip(heading, line, strict=True)) for line in lines}
    assert (shown["T"]["official EM"], shown["T"]["official F1"]) == ("50.0", "66.7")
    assert (shown["NQ"]["official EM"], shown["NQ"]["F1"].split()[0]) == ("", "66.7")
    assert from_csv(as_csv(one)) == one


def test_a_scorer_that_does_not_exist_is_refused() -> None:
    source = PublishedSet(path="x.jsonl", label="x")
    with pytest.raises(ValueError, match=r"scorer='squad' of X: give one of .*'triviaqa'"):
        Benchmark(label="X", source=source, scorer="squad")  # type: ignore[arg-type]
