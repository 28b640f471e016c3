"""How figures for documents look, and how they are written: matplotlib without its windows.

Colours are those of Okabe and Ito, which people with any form of colour blindness tell apart
(https://jfly.uni-koeln.de/color), without their yellow; what is compared differs in a second thing
too, the place, the marker or the dashes.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.core.shown import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.")
GREY = "#595959"
SUFFIXES = (".png", ".svg", ".pdf")
_LONGEST = 40  # characters of a text from outside
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.alpha": 0.6,
    "grid.color": "#d0d0d0",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # fonts that reviewers' systems accept
    "svg.hashsalt": "zerosearch",  # equal runs, equal files
    "text.parse_math": False,  # text from outside is text
}


@contextmanager
def style() -> Iterator[None]:
    """Within, figures are made and written in our style."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # that it has found its fonts
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def check_suffix(path: Path) -> None:
    """Raise an InputError where no figure is written to such a file."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: a figure is {', '.join(SUFFIXES)}; give a name that ends so")


def save(figure: Figure, path: Path) -> None:
    """Write a figure, in the form that the name of the file says.

    Raises:
        InputError: no such form.
        FileError: it could not be written.
    """
    check_suffix(path)
    with replacing(path) as file:
        file.write(_written(figure, path.suffix[1:]))


def as_svg(figure: Figure) -> bytes:
    """A figure as SVG, its letters as shapes."""
    return _written(figure, "svg")


def _written(figure: Figure, form: str) -> bytes:
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    file = io.BytesIO()
    with style():
        figure.savefig(file, format=form, dpi=150, metadata=undated)
    return file.getvalue()


def label(text: str, most: int = _LONGEST) -> str:
    """Text from outside as a label; a legend leaves out what begins with an underscore."""
    text = shown(text)
    if len(text) > most:  # paths differ at their ends
        begin = most // 3
        text = f"{text[:begin]}…{text[begin + 1 - most :]}"
    return f" {text}" if text.startswith("_") else text
