"""What commands have in common that take flags in place of a configuration's keys."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from zerosearch.core.errors import ZeroSearchError
from zerosearch.core.shown import shown


def flag_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """A parser without arguments yet.

    Args:
        name: of the command.
        about: docstring of its module, which the help shows as it stands.
    """
    return argparse.ArgumentParser(
        prog=f"zerosearch {name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


@contextmanager
def ending_in_a_sentence() -> Iterator[None]:
    """Within, an error of the project's own or of a file is what the command ends with.

    Raises:
        SystemExit: with what the error says, which may quote a file: shown as text.
    """
    try:
        yield
    except (ZeroSearchError, OSError) as error:
        sys.exit(shown(str(error), lines=True))
