"""Public data sets: what is fetched of each, how it is checked, what files are made of it."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, cast

from zerosearch.core.errors import InputError
from zerosearch.core.files import GIB
from zerosearch.data.corpus import count_passages
from zerosearch.data.published_rows import common_row
from zerosearch.data.readers import local_files
from zerosearch.data.rows import row_to_question


@dataclass(kw_only=True, slots=True, frozen=True)
class PublicFile:
    """One file of a repository.

    Args:
        path: in the repository.
        min_rows: it holds at least so many.
        name: of the file made of it.
    """

    path: str
    min_rows: int
    name: str = ""


class PublicSet(Protocol):
    """A data set of the hub, and how our files are made of its own."""

    repo: str
    revision: str
    files: Mapping[str, PublicFile]
    use: str  # the command that uses it
    extra_bytes: int  # of disk, beside what is downloaded

    def build(self, fetched: Mapping[str, Path], folder: Path) -> dict[str, int]:
        """Make the files of the set in `folder`, checked; returns the rows of each.

        Args:
            fetched: whole files of the hub by their key in `files`; they may be moved.
            folder: an empty one.

        Raises:
            InputError: a file is damaged, or holds less than it should; names file and row.
        """
        ...


@dataclass(kw_only=True, slots=True)
class QuestionFiles:
    """Questions, in any form that `common_row` and `row_to_question` read, kept as they are."""

    repo: str
    files: Mapping[str, PublicFile]
    use: str
    revision: str = "main"
    extra_bytes: int = 0

    def __post_init__(self) -> None:
        self.files = public_files(self.files)

    def build(self, fetched: Mapping[str, Path], folder: Path) -> dict[str, int]:
        """See `PublicSet.build`."""
        counts = {}
        for key, file in self.files.items():
            counts[file.name] = at_least(count_questions(fetched[key]), file)
            os.replace(fetched[key], folder / file.name)
        return counts


@dataclass(kw_only=True, slots=True)
class Corpus:
    """A corpus in Search-R1's JSON lines, compressed, or in a compressed tar archive.

    Unpacked: it is read often, and the published file is an archive in spite of its name.

    Args:
        repo: owner/name.
        files: the one file.
        use: the command that uses it.
        unpacked_gib: size on the disk, beside the download.
        revision: of the repository.
    """

    repo: str
    files: Mapping[str, PublicFile]
    use: str
    unpacked_gib: float
    revision: str = "main"

    def __post_init__(self) -> None:
        self.files = public_files(self.files)

    @property
    def extra_bytes(self) -> int:
        """Bytes of disk beside what is downloaded."""
        return int(self.unpacked_gib * GIB)

    def build(self, fetched: Mapping[str, Path], folder: Path) -> dict[str, int]:
        """See `PublicSet.build`."""
        ((key, file),) = self.files.items()
        target = folder / file.name
        try:
            with unpacked(fetched[key]) as lines, target.open("wb") as out:
                shutil.copyfileobj(lines, out, 1 << 20)
        except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
            raise InputError(f"{file.path} cannot be unpacked ({error})") from error
        return {file.name: at_least(count_passages(target), file)}


def public_files(nodes: Mapping[str, PublicFile | Mapping[str, object]]) -> dict[str, PublicFile]:
    """The files of a set, from their YAML nodes."""
    return {
        key: node if isinstance(node, PublicFile) else PublicFile(**node)  # type: ignore[arg-type]
        for key, node in nodes.items()
    }


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The text of a gzip file, or of the one file with lines in a tar archive under such a name."""
    try:
        archive = tarfile.open(path, "r|gz")  # reads the first header  # noqa: SIM115
    except tarfile.ReadError:
        with gzip.open(path, "rb") as lines:
            yield cast(IO[bytes], lines)
        return
    with archive:
        for member in archive:
            if member.name.endswith(".jsonl") and (lines := archive.extractfile(member)):
                yield lines
                return
        raise tarfile.ReadError("the archive holds no .jsonl file")


def count_questions(path: Path) -> int:
    """Questions in a file, each read as training and evaluation would.

    Raises:
        InputError: the file or a row is damaged, or of no known form.
    """
    count = 0
    for file in local_files(str(path)) or ():
        for _, location, row in file.read_all():
            if (common := common_row(row, location)) is not None:
                row_to_question(common, location=location, source=path.name)
                count += 1
    return count


def at_least(count: int, file: PublicFile) -> int:
    """The count, if it is what a file should hold.

    Raises:
        InputError: it is less.
    """
    if count < file.min_rows:
        raise InputError(f"{file.path} holds {count:,} rows, and {file.min_rows:,} were expected")
    return count
