"""How a program ends: errors as one sentence, interruptions in order, exit codes.

Light on imports, as `zerosearch.core.runs`.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from zerosearch.core.errors import ZeroSearchError

FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's environment variable: "1" shows tracebacks
_LACKING = {
    r"Interpolation key '([\w.]+)'": "{key} is needed, and is not there: choose another {group}=, "
    "or give it a value",
    r"Key '(\w+)' is not in struct": "{key} is needed, and is not there: give {group}=",
    r"Missing mandatory value: ([\w.]+)": "{key} is not set: give {key}=",
}

# What a machine lacks, wherever that shows: of no line of the program a defect.
_DISK = "free disk space, then go on with resume=<run folder>"
_MACHINE = {
    errno.ENOSPC: _DISK,
    errno.EDQUOT: _DISK,
    errno.EROFS: "give a folder that can be written to, paths.log_dir=FOLDER",
    errno.EMFILE: "let the process open more files (`ulimit -n 4096`), then go on with resume=",
    errno.ENFILE: "close other programs: the machine can open no more files",
    errno.ENAMETOOLONG: "give a path that its file system takes",
}

log = logging.getLogger(__name__)


def report_error(error: Exception) -> str:
    """Log an error: one of the project's own as its sentence, any other with its traceback too.

    Returns:
        Its kind and what it says, for a summary.
    """
    error, message, is_for_user = _unwrapped(error)
    if "lightning" in sys.modules:  # not for this: it takes seconds to load
        from lightning.fabric.utilities.rank_zero import rank_prefixed_message, rank_zero_only

        message = rank_prefixed_message(message, rank_zero_only.rank or None)
    if is_for_user and os.environ.get(FULL_ERROR) != "1":
        log.error(message)
        log.debug("traceback of the error above", exc_info=error)
    else:
        log.error(message, exc_info=error)
    return f"{type(error).__name__}: {message}"


def in_words(error: Exception) -> str:
    """What an error says, on one line; of an error that is not ours with its kind."""
    error, message, is_for_user = _unwrapped(error)
    line = message.partition("\n")[0]
    return line if is_for_user else f"{type(error).__name__}: {line}"


def _unwrapped(error: Exception) -> tuple[Exception, str, bool]:
    """The error itself, without Hydra's wrapping, what it says, and whether that says all.

    Hydra and OmegaConf only read the configuration, so what they say is about the user's input;
    of an error in a constructor that they called, this is so where it refuses its arguments.
    """
    from hydra.errors import InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    own: tuple[type[Exception], ...] = (ZeroSearchError, OmegaConfBaseException)
    key = ""
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        own += (ValueError, ImportError, OSError)
        if "lightning" in sys.modules:
            own += (sys.modules["lightning"].fabric.utilities.exceptions.MisconfigurationException,)
        key = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else ""
        error = error.__cause__
    message = str(error)
    if isinstance(error, OmegaConfBaseException):
        message = of_configuration(message)
    elif "torch" in sys.modules and isinstance(error, sys.modules["torch"].OutOfMemoryError):
        message = _out_of_memory(message)
    elif (lacking := of_the_machine(error)) is not None:
        return error, f"{key}: {lacking}" if key else lacking, True
    return error, f"{key}: {message}" if key else message, isinstance(error, own)


def of_configuration(said: str) -> str:
    """What OmegaConf says, as far as it concerns people: which key is lacking, and a remedy."""
    line = said.partition("\n")[0]  # the rest is about its own types
    for pattern, words in _LACKING.items():
        if found := re.search(pattern, line):
            return words.format(key=found[1], group=found[1].partition(".")[0])
    return line


def of_the_machine(error: BaseException) -> str | None:
    """That the disk is full, or what else a machine lacks, and a remedy; None of other errors.

    Libraries raise it as errors of their own, with the system's in front of them or its number.
    """
    cause: BaseException | None = error
    while cause is not None:
        found = re.search(r"\(os error (\d+)\)", str(cause))  # as Rust says it
        number = cause.errno if isinstance(cause, OSError) else found and int(found[1])
        if not isinstance(cause, ZeroSearchError) and number in _MACHINE:
            file = getattr(cause, "filename", None)
            place = f"{file!s:.300}: " if file else ""
            return f"{place}{os.strerror(number)}: {_MACHINE[number]}"
        cause = cause.__cause__ or cause.__context__
    return None


def quiet_about_the_machine() -> None:
    """From now on a full disk is said once, by what ends the run.

    Not by each thread of a library that has stumbled over it too, nor for each line of the log.
    """
    logging.raiseExceptions = False

    def say(stumbled: threading.ExceptHookArgs) -> None:
        if stumbled.exc_value is None or of_the_machine(stumbled.exc_value) is None:
            threading.__excepthook__(stumbled)

    threading.excepthook = say


@contextmanager
def ending_in_words(go_on: str = "", *, code: int = 1) -> Iterator[None]:
    """End a program with a sentence and an exit code, whatever ended it.

    Args:
        go_on: how to go on after an interruption.
        code: after an error; 130 after Ctrl-C or SIGTERM.

    Raises:
        SystemExit: the program did not end by itself.
    """
    with sigterm_as_ctrl_c():
        try:
            yield
        except KeyboardInterrupt as error:
            log.warning("interrupted%s", go_on and f": {go_on}")
            raise SystemExit(128 + signal.SIGINT) from error
        except Exception as error:
            report_error(error)
            raise SystemExit(code) from error


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Within, SIGTERM interrupts as Ctrl-C does, unless the program receives it otherwise.

    By default it would end the process at once; asyncio cancels what is under way and cleans up.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _out_of_memory(said: str) -> str:
    """What to change, in place of how torch's allocator stands."""
    tried = re.search(r"Tried to allocate [\d.]+ \w+", said)
    return (
        f"the GPU's memory is used up ({tried[0] if tried else said.splitlines()[0]}): lower "
        "module.tokens_per_micro_batch, then module.logprob_chunk_tokens; set "
        "model.gradient_checkpointing=true; with generator=vllm lower "
        "generator.gpu_memory_utilization. `zerosearch plan` with the same "
        "overrides shows what takes how much"
    )
