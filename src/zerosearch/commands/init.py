"""Begin a project of one's own: `zerosearch init FOLDER`.

Written are an experiment, a search engine, a reward, and a test that trains with them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from zerosearch.command_line.flags import flag_parser
from zerosearch.core.errors import InputError

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
    try:
        files = write_project(folder)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(*(folder / file for file in files), sep="\n")
    print(f"In {folder}: `zerosearch train experiment=mine` trains, `python -m pytest` tests it")
