"""How a judge and the presence of the golden answer agree."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zerosearch.core.shown import csv_cell
from zerosearch.core.text import mentions
from zerosearch.simulator.fidelity import findable
from zerosearch.tuning.judges import Case
from zerosearch.tuning.row_maker import JudgedSearch

_AGREEMENT = {  # the rule: a golden answer is mentioned
    "both": "documents useful to judge and rule",
    "judge_only": "documents useful to the judge alone",
    "rule_only": "documents useful to the rule alone",
    "neither": "documents useful to neither",
    "share": "equal verdicts of judge and rule",
    "kappa": "Cohen's kappa of judge and rule",
}


def agreement(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Agreement of two yes-or-no verdicts on the same cases.

    Args:
        pairs: judge and rule, at least one pair.

    Returns:
        The four counts, `share` that agree, and Cohen's kappa (Educational and Psychological
        Measurement 20, 1960): (observed - expected) / (1 - expected); 1 where both always say the
        same one thing.
    """
    total = len(pairs)
    both, judge, rule = (
        sum(judge and rule for judge, rule in pairs),
        sum(judge for judge, _ in pairs),
        sum(rule for _, rule in pairs),
    )
    neither = total - judge - rule + both
    share = (both + neither) / total
    expected = (judge * rule + (total - judge) * (total - rule)) / total**2
    return {
        "both": both,
        "judge_only": judge - both,
        "rule_only": rule - both,
        "neither": neither,
        "share": share,
        "kappa": 1.0 if expected == 1.0 else (share - expected) / (1.0 - expected),
    }


def summarize(searches: Sequence[JudgedSearch]) -> dict[str, Any]:
    """Counts and shares of documents and searches, and the agreement with the rule."""
    judged = [pair for search in searches for pair in zip(search.cases, search.useful, strict=True)]
    known = [(case, useful) for case, useful in judged if useful is not None]
    pairs = [(useful, _by_rule(case)) for case, useful in known if findable(case.golden_answers)]
    return {
        "searches": len(searches),
        "searches_useful": _share([any(search.useful) for search in searches]),
        "documents": len(judged),
        "documents_useful": _share([useful for _, useful in known]),
        "documents_without_verdict": len(judged) - len(known),
        "agreement": agreement(pairs) if pairs else {},
    }


def write_report(folder: Path, summary: dict[str, Any], searches: Sequence[JudgedSearch]) -> None:
    """`judge.json`, and `disagreements.csv` with every document that judge and rule differ on."""
    (folder / "judge.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    with (folder / "disagreements.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "golden_answers", "query", "title", "text", "judge", "rule"])
        for search in searches:
            for case, useful in zip(search.cases, search.useful, strict=True):
                comparable = useful is not None and findable(case.golden_answers)
                if comparable and useful != _by_rule(case):
                    answers = " | ".join(case.golden_answers)
                    document = case.document
                    row = [case.question, answers, case.query, document.title, document.text]
                    writer.writerow([*map(csv_cell, row), useful, not useful])


def print_summary(summary: dict[str, Any]) -> None:
    """The report on the screen."""
    console = Console()
    table = Table(title="Documents of recorded searches", show_header=False)
    for name, value in summary.items():
        if name != "agreement":
            shown = f"{value:.1%}" if name.endswith("useful") else f"{value}"
            table.add_row(name.replace("_", " "), shown)
    for name, value in summary["agreement"].items():
        shown = f"{value:.3f}" if name in ("share", "kappa") else f"{value}"
        table.add_row(_AGREEMENT[name], shown)
    console.print(table)


def _by_rule(case: Case) -> bool:
    return mentions(case.document.text, findable(case.golden_answers))


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
