"""Files of lines: split at line feeds alone, and no line larger than a row can be."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from zerosearch.core.errors import InputError

# A row of questions takes some kilobytes, with all its documents some hundred. Without a bound a
# file of one line (or a few bytes of gzip that inflate to one) fills the memory of the machine.
MAX_ROW_BYTES = 64 * 2**20


class JsonLines:
    """The lines of a file, as bytes, with a position that can be saved while reading.

    Args:
        path: a `.gz` is unpacked on the way.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._line = self._byte = 0  # read so far
        with self._opened():
            pass

    def __iter__(self) -> Iterator[bytes]:
        """Lines from the position on.

        Raises:
            InputError: a line is larger than `MAX_ROW_BYTES`.
        """
        with self._opened() as file:
            file.seek(self._byte)
            while line := file.readline(MAX_ROW_BYTES + 1):
                if len(line) > MAX_ROW_BYTES:
                    raise InputError(
                        f"{self._path}, line {self._line + 1}: it has more than "
                        f"{MAX_ROW_BYTES >> 20} MiB; write one row per line"
                    )
                self._line, self._byte = self._line + 1, self._byte + len(line)
                yield line

    def state_dict(self) -> dict[str, Any]:
        return {"line": self._line, "byte": self._byte}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "byte" not in state_dict:
            raise InputError(
                f"{self._path}: the checkpoint was written by a version that streamed such files "
                "in another way: resume with that version, or start a new run"
            )
        self._line, self._byte = state_dict["line"], state_dict["byte"]

    def _opened(self) -> IO[bytes]:
        if self._path.endswith(".gz"):
            return cast(IO[bytes], gzip.open(self._path, "rb"))
        return open(self._path, "rb")
