"""A terminal for a process, and what people see on it at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from pathlib import Path
from types import TracebackType

_PART = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Terminal:
    """A pseudo-terminal; everything that is written to it is kept."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.path = Path(os.ttyname(self._slave))
        self._received = b""
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Terminal:
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        os.close(self._slave)  # the last writer: the reader comes to an end
        self._reader.join(10)
        os.close(self._master)

    def _read(self) -> None:
        try:
            while part := os.read(self._master, 65536):
                self._received += part
        except OSError:  # as Linux says that nobody has it open any more
            pass

    @property
    def received(self) -> str:
        """All that was written, with control sequences."""
        return self._received.decode()

    def lines(self) -> list[str]:
        """What stands on an endlessly high screen, after moves of the cursor and erased lines.

        Raises:
            ValueError: it uses a sequence that is not known here.
        """
        screen, row, column = [""], 0, 0
        for code, kind, move, text in _PART.findall(self.received):
            if move == "\r":
                column = 0
            elif move == "\n":
                row, screen = row + 1, [*screen, ""][: max(len(screen), row + 2)]
            elif kind == "A":
                row = max(0, row - int(code or 1))
            elif kind == "K":
                screen[row] = screen[row][:column] if code in ("", "0") else ""
            elif kind and kind not in "mhl":
                raise ValueError(f"sequence {code}{kind}")
            for start in range(0, len(text), self.columns):
                if start:
                    row, column, screen = row + 1, 0, [*screen, ""]
                part = text[start : start + self.columns]
                before = screen[row][:column].ljust(column)
                screen[row] = before + part + screen[row][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in screen]
