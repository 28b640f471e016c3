"""One page about a run, several runs or a sweep: `zerosearch report RUN...`.

Curves, health, cost and every trajectory, in one HTML file that needs no network; of a sweep its
tables and its figure, too. Without RUN it is the newest run of `zerosearch train`.
"""

from __future__ import annotations

from pathlib import Path

from zerosearch.command_line.flags import ending_in_a_sentence, flag_parser
from zerosearch.core.outcome import report_command

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
    parser.add_argument(
        "--figure",
        metavar="FILE",
        type=Path,
        help="instead of the page the curves of reward, noise and F1: FILE.png, .svg or .pdf",
    )
    arguments = parser.parse_args()
    with ending_in_a_sentence():
        if arguments.figure is not None:
            _draw(arguments.runs, arguments.figure)
        else:
            _write(arguments.runs, arguments.out, arguments.trajectories)


def report_sweep(folder: Path) -> None:
    """Write the tables and the figure of a sweep into its folder, and print the table.

    Raises:
        InputError: what its folder holds cannot be read.
        FileError: a file could not be written.
    """
    from zerosearch.report.sweep import trials_of_sweep
    from zerosearch.report.sweep_files import show_sweep, write_sweep

    trials = trials_of_sweep(folder)
    show_sweep(folder, trials, write_sweep(folder, trials))
    print(f"next: {report_command(folder)}", flush=True)


def _write(places: list[str], out: str | None, trajectories: int) -> None:
    from zerosearch.core.sweep_folder import is_sweep_folder
    from zerosearch.report.page import REPORT, write_page
    from zerosearch.report.run_folder import find_runs
    from zerosearch.report.sweep import trials_of_sweep
    from zerosearch.report.sweep_files import show_sweep, write_sweep

    first = Path(places[0])
    sweep = first if len(places) == 1 and is_sweep_folder(first) else None
    trials = trials_of_sweep(sweep) if sweep else []
    if sweep is not None:
        show_sweep(sweep, trials, write_sweep(sweep, trials))
    runs = find_runs(places)
    if sweep is None and len(runs) == 1:
        first = runs[0].path
    folder = first if len(places) == 1 or len(runs) == 1 else Path(".")
    target = Path(out) if out else folder / REPORT
    write_page(runs, target, trajectories, trials)
    print(f"{target.resolve()} ({target.stat().st_size / 1e6:.1f} MB): open it in a browser")


def _draw(places: list[str], file: Path) -> None:
    from zerosearch.report.figures import check_suffix, save
    from zerosearch.report.run_figure import draw_runs
    from zerosearch.report.run_folder import find_runs

    check_suffix(file)
    save(draw_runs(find_runs(places)), file)
    print(file.resolve())
