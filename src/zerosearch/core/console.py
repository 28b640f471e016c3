"""How a log looks to people: on the console the time and what is said, in the file all there is.

Light on imports: Hydra sets it up before the command's own modules are loaded.
"""

from __future__ import annotations

import logging
import os
import sys

_COLOURS = {logging.WARNING: 33, logging.ERROR: 31, logging.CRITICAL: 31}  # yellow, red, of ANSI


class ConsoleFormatter(logging.Formatter):
    """`18:16:20 message`, with the level from WARNING on.

    Args:
        colours: of these levels, for a terminal.
    """

    def __init__(self, *, colours: bool = False) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")
        self.colours = colours

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = record.levelname
        if self.colours and (colour := _COLOURS.get(record.levelno)):
            level = f"\x1b[{colour}m{level}\x1b[0m"
        shown = f"{level} " if record.levelno >= logging.WARNING else ""
        return f"{record.asctime} {shown}{record.message}"


class ConsoleHandler(logging.Handler):
    """Writes to what is standard output when a message comes: a bar shown there moves below it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
            sys.stdout.write(ConsoleFormatter(colours=colours).format(record) + "\n")
            sys.stdout.flush()
        except Exception:
            self.handleError(record)
