"""The project's own errors: each message is one sentence for the user, and is shown alone.

Any other error is a library's or a defect, and is shown with its traceback (see `endings`).
What a library raises over the user's input is caught where it is called and raised as one of these;
they are also the builtin errors that they specialise.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager


class ZeroSearchError(Exception):
    """What is wrong, and what to change."""


class InputError(ZeroSearchError, ValueError):
    """A setting, a file or an answer that cannot be used."""


class RunError(ZeroSearchError, RuntimeError):
    """What a run needs is gone, or what it does has failed."""


class FileError(ZeroSearchError, OSError):
    """A file that cannot be read or written."""


class NonFiniteError(ZeroSearchError, FloatingPointError):
    """A number that is infinite or none."""


# What libraries raise over packages that are not there, values, and files that are cut or lie about
# their sizes.
OF_INPUT = (ImportError, OSError, EOFError, ValueError, OverflowError, struct.error)


@contextmanager
def as_input_errors(what: str) -> Iterator[None]:
    """Within, or in the function decorated, what a library refuses is wrong with the user's input.

    Values, files and packages that are not there, that is, and whatever a library's own code
    stumbles over, as over a damaged file; an error of our code stays as it is.

    Args:
        what: cannot be done with the input, before the library's own words.
    """
    try:
        yield
    except ZeroSearchError:
        raise
    except Exception as error:
        of_file = type(error).__name__ == "SafetensorError"  # not imported: this module is light
        known = of_file or isinstance(error, OF_INPUT)
        if not known and _raised_here(error):
            raise
        kind = "" if known else f"{type(error).__name__}: "
        raise InputError(f"{what}: {kind}{' '.join(str(error).split())[:1000]}") from error


def _raised_here(error: Exception) -> bool:
    """Whether the line that raised an error is one of this package."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    name = last.tb_frame.f_globals.get("__name__", "") if last is not None else ""
    return name.partition(".")[0] == __name__.partition(".")[0]
