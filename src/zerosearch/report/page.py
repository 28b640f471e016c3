"""One HTML page about runs, which needs nothing else: no network, no other file.

What a model wrote reaches the page in three ways, none of which is HTML: as escaped values of the
template, as JSON whose `<` is written out, and as packed texts, which scripts put into text nodes.
Beyond that a policy in the page names the scripts that may run by their hashes, and allows no
connection.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from zerosearch import __version__
from zerosearch.core.files import replacing
from zerosearch.core.templates import render_page
from zerosearch.report.charts import all_metrics, charts_of
from zerosearch.report.facts import comparison, engine_scores, facts, fidelity, status
from zerosearch.report.figures import as_svg
from zerosearch.report.health import firings, watched
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.sweep import INTERVALS, Trial, measures_of, settings_of, trials_of
from zerosearch.report.sweep_figure import CAPTION, draw_sweep
from zerosearch.report.sweep_tables import count, not_finished, table
from zerosearch.report.trajectories import read_transcripts

REPORT = "report.html"
_SCRIPTS = ("base.js", "charts.js", "heat.js", "turns.js", "rows.js", "browser.js", "start.js")
_OWN = files("zerosearch.report") / "page"


def write_page(
    runs: Sequence[RunFolder], target: Path, limit: int, trials: Sequence[Trial] = ()
) -> None:
    """Write the page of one run, or of several that are compared.

    Args:
        runs: as `find_runs` gives them.
        target: takes the page.
        limit: of trajectories in it.
        trials: of the sweep that the runs are of.

    Raises:
        InputError: a transcript cannot be read.
        FileError: the page could not be written.
    """
    with replacing(target) as file:
        file.write(build(runs, limit, trials).encode(errors="replace"))


def build(runs: Sequence[RunFolder], limit: int, trials: Sequence[Trial] = ()) -> str:
    """The page as text, see `write_page`."""
    library = get_plotlyjs()
    scripts = [(_OWN / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    transcripts = read_transcripts(runs, limit)
    charts, zero = charts_of(runs)
    data = {
        "runs": [run.name for run in runs],
        "charts": charts,
        "metrics": all_metrics(runs),
        "trajectories": transcripts.index(),
    }
    return render_page(
        (_OWN / "page.html.j2").read_text(encoding="utf-8"),
        style=(_OWN / "style.css").read_text(encoding="utf-8"),
        scripts=scripts,
        hashes=" ".join(_hash(script) for script in (*scripts, library)),
        library=base64.b64encode(gzip.compress(library.encode(), mtime=0)).decode(),
        chunks=transcripts.chunks,
        data=data,
        title=_title(runs),
        version=__version__,
        runs=[_about(run) for run in runs],
        comparison=comparison(runs) if len(runs) > 1 else None,
        sweep=_sweep(trials or trials_of(runs)) if trials or len(runs) > 1 else None,
        fidelity=[
            (*([run.name] if len(runs) > 1 else []), *row) for run in runs for row in fidelity(run)
        ],
        zero=zero,
        transcripts=transcripts,
    )


def _title(runs: Sequence[RunFolder]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs"
    experiment = runs[0].summary.get("choices", {}).get("experiment")
    return f"{experiment or 'run'}, {runs[0].path.name}"


def _sweep(trials: Sequence[Trial]) -> dict[str, Any]:
    settings = settings_of(trials)
    measures, figure = measures_of(settings), draw_sweep(settings)
    return {
        "count": count(trials),
        "table": table(settings, measures) if measures else None,
        "intervals": INTERVALS,
        "figure": None if figure is None else base64.b64encode(as_svg(figure)).decode(),
        "caption": CAPTION,
        "not_finished": not_finished(trials),
    }


def _about(run: RunFolder) -> dict[str, Any]:
    return {
        "name": run.name,
        "status": status(run),
        "completed": run.summary.get("status") == "completed",
        "scores": engine_scores(run),
        "facts": facts(run),
        "fired": firings(run),
        "rules": len(watched(run)),
    }


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
