"""How a program ends: errors as one sentence, interruptions in order, exit codes.

Light on imports, as `zerosearch.runs`.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's environment variable: "1" shows tracebacks
_LACKING = {
    r"Interpolation key '([\w.]+)'": "{key} is needed, and is not there: choose another {group}=, "
    "or give it a value",
    r"Key '(\w+)' is not in struct": "{key} is needed, and is not there: give {group}=",
    r"Missing mandatory value: ([\w.]+)": "{key} is not set: give {key}=",
}

log = logging.getLogger(__name__)


def report_error(error: Exception) -> str:
    """Log an error as one sentence where it was written for the user; returns the sentence."""
    from hydra.errors import InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    # Written for the user; anything else is a defect and shows its traceback.
    for_users: tuple[type[Exception], ...] = (ValueError, OSError, FloatingPointError, RuntimeError)
    for_users += (ImportError, OmegaConfBaseException)
    key = None
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        key = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else None
        error = error.__cause__
    message = f"{key}: {error}" if key else str(error)
    if "torch" in sys.modules and isinstance(error, sys.modules["torch"].OutOfMemoryError):
        message = _out_of_memory(message)
    if isinstance(error, OmegaConfBaseException):
        message = of_configuration(message)
    if "lightning" in sys.modules:  # not for this: it takes seconds to load
        from lightning.fabric.utilities.exceptions import MisconfigurationException
        from lightning.fabric.utilities.rank_zero import rank_prefixed_message, rank_zero_only

        for_users += (MisconfigurationException,)
        message = rank_prefixed_message(message, rank_zero_only.rank or None)
    if isinstance(error, for_users) and os.environ.get(FULL_ERROR) != "1":
        log.error(message)
        log.debug("traceback of the error above", exc_info=error)
    else:
        log.error(message, exc_info=error)
    return f"{type(error).__name__}: {message}"


def of_configuration(said: str) -> str:
    """What OmegaConf says, as far as it concerns people: which key is lacking, and a remedy."""
    line = said.partition("\n")[0]  # the rest is about its own types
    for pattern, words in _LACKING.items():
        if found := re.search(pattern, line):
            return words.format(key=found[1], group=found[1].partition(".")[0])
    return line


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
        "generator.gpu_memory_utilization. `python -m zerosearch.plan` with the same "
        "overrides shows what takes how much"
    )
