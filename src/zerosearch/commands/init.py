"""Begin a project of your own: `zerosearch init FOLDER`.

Written are an experiment, a search engine, a reward, and a test that trains with them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from zerosearch.command_line.flags import ending_in_a_sentence, flag_parser
from zerosearch.core.errors import InputError
from zerosearch.core.runs import CHECKOUT

STARTER = Path(__file__).parents[1] / "starter"


def write_project(folder: Path) -> list[Path]:
    """Copy the starter: an experiment, an engine, a reward, and a test that trains with them.

    Args:
        folder: is made; what it holds already stays.

    Returns:
        The files, relative to the folder.

    Raises:
        InputError: one of them is there already; nothing was written.
    """
    files = sorted(
        file.relative_to(STARTER) for file in STARTER.rglob("*") if file.suffix in (".py", ".yaml")
    )
    if taken := [str(file) for file in files if (folder / file).exists()]:
        raise InputError(f"{folder} holds {', '.join(taken)} already: give another folder")
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(STARTER / file, folder / file)
    return files


def main() -> None:
    """Command line."""
    parser = flag_parser("init", __doc__)
    parser.add_argument("folder", type=Path, help="of the project")
    folder = parser.parse_args().folder
    with ending_in_a_sentence():
        files = write_project(folder)
    print(*(folder / file for file in files), sep="\n")
    logs = (folder if CHECKOUT is None else CHECKOUT) / "logs"
    print(
        f"In {folder}: `zerosearch train experiment=mine` trains, `python -m pytest` tests it; "
        f"runs go to {logs} (paths.log_dir=FOLDER: elsewhere)"
    )
