"""Compare two methods: `zerosearch compare RUN:METHOD RUN:METHOD`.

`logs/evaluate/latest:policy/search` is a row of a run, as `table.csv` names it; a run of one row
needs no name. Of a training RUN:start and RUN:test are its evaluations before and after, RUN is
the latter. Compared are all benchmarks, or engines, that both have: the n questions of each, one
by one. Won are those that the second scores higher.
"""

from __future__ import annotations

from rich.console import Console

from zerosearch.command_line.flags import ending_in_a_sentence, flag_parser
from zerosearch.core.tables import as_markdown, as_rich


def main() -> None:
    """Command line."""
    parser = flag_parser("compare", __doc__)
    parser.add_argument("first", help="RUN or RUN:METHOD, of a training RUN:start or RUN:test")
    parser.add_argument("second", help="the same of the other")
    parser.add_argument("--markdown", action="store_true", help="for a report")
    arguments = parser.parse_args()
    from zerosearch.evaluation.comparison import comparison_table

    with ending_in_a_sentence():
        cells = comparison_table(arguments.first, arguments.second)
    if arguments.markdown:
        print(as_markdown(cells), end="")
    else:
        Console().print(as_rich(cells, f"{arguments.first}\n-> {arguments.second}, x 100"))
