"""A call of foreign code that may never return."""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class TookTooLong(Exception):
    """The call did not return in its time."""


class _Alarm(BaseException):
    """Not an `Exception`: the code that is interrupted must not catch it with its own errors."""


def call_within(seconds: float, function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns, if it does in its time.

    In the main thread a timer interrupts it wherever it is: also in a regular expression, which
    no other thread could, since it holds the interpreter. In other threads, which get no signals,
    it runs in one of its own; left behind there, it ends at its next line of Python, and with the
    process where it waits for something.

    Raises:
        TookTooLong: it was interrupted.
        Exception: whatever the function raises.
    """
    if threading.current_thread() is threading.main_thread():
        return _with_alarm(seconds, function, arguments)
    return _in_thread(seconds, function, arguments)


def _with_alarm(seconds: float, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    running = True

    def ring(*_: object) -> None:
        if running:
            raise _Alarm

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    # again and again: what is interrupted may catch even this
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        try:
            return function(*arguments)
        finally:
            running = False  # if the alarm rings right before, the outer one is still reached
    except _Alarm:
        raise TookTooLong from None
    finally:
        running = False
        if left:  # a timer of somebody else
            left = max(left - (time.monotonic() - started), 1e-3)
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)


def _in_thread(seconds: float, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    returned: Future[T] = Future()

    def run() -> None:
        try:
            returned.set_result(function(*arguments))
        except BaseException as error:
            returned.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not thread.is_alive():
        return returned.result()
    identity = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(SystemExit))
    raise TookTooLong
