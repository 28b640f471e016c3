"""Derive a simulator's prompt template from the data set it was tuned on.

`zerosearch template ROWS.json --output google.j2`. A released simulator only behaves with the very
prompt it was tuned on; the template gives it that prompt, byte for byte.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zerosearch.command_line.flags import ending_in_a_sentence, flag_parser
from zerosearch.core.errors import InputError
from zerosearch.core.shown import shown

if TYPE_CHECKING:
    from zerosearch.tuning.row_reader import TuningRow
    from zerosearch.tuning.template.inference import Derived


def main(arguments: list[str] | None = None) -> None:
    """Read the rows, derive, report and write."""
    options = _parse(arguments)
    with ending_in_a_sentence():
        run(options)


def run(options: argparse.Namespace) -> None:
    """Derive the template and write it where enough rows agree with it.

    Raises:
        InputError: too few rows agree, or the rows leave something open.
    """
    from zerosearch.tuning.row_reader import read_rows
    from zerosearch.tuning.template.inference import derive_template

    rows = read_rows(options.rows, prompt_key=options.prompt_key, joiner=options.joiner)
    derived = derive_template(
        rows,
        noisy_text=options.noisy,
        named=_named(options.slot),
        separator=options.answer_separator,
    )
    _report(derived, rows)
    if derived.share < options.min_share:
        raise InputError(
            f"{len(derived.misfits)} of {derived.rows} rows are not reproduced, more than "
            f"--min-share {options.min_share} allows; nothing was written. The first:\n"
            f"{derived.misfits[0]}"
        )
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(derived.text, encoding="utf-8", newline="")
    print(f"written: {output}; use it with simulator.prompt_template={output}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = flag_parser("template", __doc__)
    parser.add_argument("rows", help=".json, .jsonl or .parquet file, or name on the hub")
    parser.add_argument("--output", required=True, help="template file to write")
    parser.add_argument("--prompt-key", help="field that holds the prompt")
    parser.add_argument(
        "--joiner", default="\n", help="between instruction and input (default: a line break)"
    )
    parser.add_argument("--noisy", metavar="TEXT", help="what only noisy prompts hold")
    parser.add_argument(
        "--slot",
        action="append",
        default=[],
        metavar="N=NAME",
        help="variable of a slot, 2=question or noisy.2=question; may be repeated",
    )
    parser.add_argument("--answer-separator", metavar="TEXT", help="between golden answers")
    parser.add_argument(
        "--min-share", type=float, default=1.0, help="rows that must agree (default: 1, all)"
    )
    return parser.parse_args(arguments)


def _named(options: list[str]) -> dict[tuple[str, int], str]:
    from zerosearch.tuning.template.inference import QUALITIES
    from zerosearch.tuning.template.slot_names import NAMES

    named: dict[tuple[str, int], str] = {}
    for option in options:
        place, _, name = option.partition("=")
        quality, _, number = place.rpartition(".")
        if not number.isdigit() or name not in NAMES or quality not in ("", *QUALITIES):
            raise InputError(
                f"--slot {option}: write N=NAME, useful.N=NAME or noisy.N=NAME, with a slot's "
                f"number and one of {', '.join(NAMES)}"
            )
        for kind in QUALITIES if not quality else (quality,):
            named[kind, int(number)] = name
    return named


def _report(derived: Derived, rows: list[TuningRow]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("quality", "slot", "variable", "after the text", "example")
    for found in derived.forms:
        for slot in found.slots:
            filling = found.fillings[slot.number]
            detail = f" joined by {filling.separator!r}" if filling.separator is not None else ""
            detail = " (the first)" if filling.first_only else detail
            table.add_row(
                found.quality,
                str(slot.number),
                *(
                    Text(shown(cell))
                    for cell in (filling.name + detail, slot.place, repr(slot.present[0][:60]))
                ),
            )
    console = Console()
    console.print(table)
    for note in _notes(derived):
        console.print(f"note: {shown(note)}", markup=False)
    if systems := {row.system for row in rows} - {""}:
        first = f"{sorted(systems)[0][:200]!r}"
        console.print(f"note: the template has the rows' system message, {first}", markup=False)
    agree = derived.rows - len(derived.misfits)
    console.print(f"{agree} of {derived.rows} rows are reproduced byte for byte")


def _notes(derived: Derived) -> list[str]:
    notes = [note for found in derived.forms for note in found.notes]
    fillings = [filling for found in derived.forms for filling in found.fillings.values()]
    if guessed := {str(filling.separator) for filling in fillings if filling.guessed}:
        shown = " and ".join(map(repr, sorted(guessed)))
        notes.append(f"{shown} between several golden answers is a guess: --answer-separator")
    if "top_k" not in {filling.name for filling in fillings}:
        notes.append("the prompts ask for a fixed number of documents: set episode.top_k to it")
    return notes
