"""Messages that anybody on the network can cause are written a few times a minute."""

from __future__ import annotations

import logging
import time

_PERIOD_S = 60.0
_MOST = 5  # of one kind in a period


class FewOfAKind(logging.Filter):
    """Lets some messages of each line of code through, then tells how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}  # beginning of a period, count

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.pathname, record.lineno), time.monotonic()
        began, count = self._seen.get(kind, (now, 0))
        left_out = count - _MOST
        if now - began > _PERIOD_S:
            began, count = now, 0
            if left_out > 0:
                record.msg = f"{record.getMessage()} ({left_out} more like it were left out)"
                record.args = ()
        self._seen[kind] = (began, count + 1)
        return count < _MOST


def limit_logs(*names: str) -> None:
    """Bound what these loggers write, each line of code by itself."""
    for name in names:
        logger = logging.getLogger(name)
        if not any(isinstance(each, FewOfAKind) for each in logger.filters):
            logger.addFilter(FewOfAKind())
