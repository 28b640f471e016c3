"""Tables of text for people: a pipe table of Markdown, a table on a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from zerosearch.core.shown import shown

Cells = list[list[str]]  # the heading first

_MARKDOWN = str.maketrans({"|": r"\|", "\\": r"\\", "<": "&lt;"})


def markdown(text: str) -> str:
    """Text in a line of Markdown: no cell ends in it, and neither HTML nor links come of it."""
    return shown(text).translate(_MARKDOWN).replace("](", r"]\(")


def as_markdown(cells: Cells) -> str:
    """A pipe table; of what is in a cell, see `markdown`."""
    heading, *rows = [[*map(markdown, row)] for row in cells]
    rule = ["---"] * len(heading)
    return "".join(f"| {' | '.join(row)} |\n" for row in (heading, rule, *rows))


def as_rich(cells: Cells, title: str) -> Table:
    """For a terminal."""
    heading, *rows = cells
    table = Table(
        title=Text(shown(title, lines=True)), box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for index, name in enumerate(heading):
        number = all(row[index][:1] in "+-<[0123456789" for row in rows)  # stays whole
        table.add_column(
            Text(shown(name).replace(" ", "\n")),
            justify="right" if index else "left",
            overflow="fold",
            no_wrap=number,
        )
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    return table
