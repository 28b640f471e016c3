"""One table of several evaluations: `zerosearch merge RUN RUN --into FOLDER`.

Rows keep the labels they were given (`methods.policy.label=Search-R1`); a row whose name was there
before is told apart by its run.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from zerosearch.command_line.flags import ending_in_a_sentence, flag_parser
from zerosearch.core.tables import as_rich
from zerosearch.evaluation.table_files import write_tables
from zerosearch.evaluation.tables import main_table, merged


def main() -> None:
    """Command line."""
    parser = flag_parser("merge", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--into", type=Path, help="folder that takes table.md, .csv and .tex")
    parser.add_argument("--paper", nargs="*", help="policies whose rows of the paper are shown")
    arguments = parser.parse_args()
    with ending_in_a_sentence():
        results = merged(arguments.runs)
        if arguments.into is not None:
            write_tables(arguments.into, results, arguments.paper)
    Console().print(as_rich(main_table(results, policies=arguments.paper), "Exact match x 100"))
