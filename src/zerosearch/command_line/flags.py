"""The parser of a command that takes flags in place of a configuration's keys."""

from __future__ import annotations

import argparse


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
