"""The table of engines."""

from rich.console import Console

from zerosearch.evaluation.tables import engine_table


def test_every_engine_has_a_row_and_a_missing_metric_a_dash() -> None:
    metrics = {
        "test/bm25/f1": 0.8734,
        "test/bm25/search/latency_s": 0.00031,
        "test/web/f1": 0.5,
        "test/web/search/failed": 0.125,
    }
    console = Console(width=120, record=True)
    console.print(engine_table(["bm25", "web"], metrics))
    rows = [line.split("│")[1:-1] for line in console.export_text().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells == [
        ["bm25", "-", "-", "0.873", "-", "0.0003", "-", "-"],
        ["web", "-", "-", "0.500", "-", "-", "-", "12.5%"],
    ]
