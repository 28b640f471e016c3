"""One page about a run, several runs or a sweep: `zerosearch report RUN...`.

Curves, health, cost and every trajectory, in one HTML file that needs no network. Without RUN it
is the newest run of `zerosearch train`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from zerosearch.command_line.flags import flag_parser
from zerosearch.core.errors import ZeroSearchError

TRAJECTORIES = 10_000


def main() -> None:
    """Command line."""
    parser = flag_parser("report", __doc__)
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="*",
        default=["latest"],
        help="run folder, or a sweep of them",
    )
    parser.add_argument("--out", metavar="FILE", help="the page; default: report.html in the run")
    parser.add_argument(
        "--trajectories",
        metavar="N",
        type=int,
        default=TRAJECTORIES,
        help="most trajectories in the page, default %(default)s; 0 for none",
    )
    arguments = parser.parse_args()
    from zerosearch.report.page import REPORT, write_page
    from zerosearch.report.run_folder import find_runs

    try:
        runs = find_runs(arguments.runs)
        one = len(arguments.runs) == 1
        folder = runs[0].path if len(runs) == 1 else Path(arguments.runs[0] if one else ".")
        target = Path(arguments.out) if arguments.out else folder / REPORT
        write_page(runs, target, arguments.trajectories)
    except (ZeroSearchError, OSError) as error:
        sys.exit(str(error))
    print(f"{target.resolve()} ({target.stat().st_size / 1e6:.1f} MB): open it in a browser")
