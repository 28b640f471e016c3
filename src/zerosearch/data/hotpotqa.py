"""`hotpotqa_small`: questions of HotpotQA (arXiv 1809.09600) and their own paragraphs as a corpus.

HotpotQA's distractor set gives each question ten paragraphs of Wikipedia: two that hold the answer,
eight that a search with the question found. A fixed selection of questions, of training and of
validation, with these paragraphs is a small world of real text in which each question can be
answered. The selection depends on the version of the published files alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.core.seeding import derive_random
from zerosearch.data.corpus import Passage, count_passages, write_corpus
from zerosearch.data.public_sets import PublicFile, at_least, count_questions, public_files
from zerosearch.data.rows import question_to_row
from zerosearch.types import Question

CORPUS = "corpus.jsonl.gz"
SPLITS = ("train", "test")


@dataclass(kw_only=True, slots=True)
class HotpotQASmall:
    """Makes `qa_train.jsonl`, `qa_test.jsonl` and `corpus.jsonl.gz`.

    Args:
        repo: owner/name.
        revision: of the repository.
        files: "train" and "test", parquet in the form of the hub.
        use: the command that uses it.
        train_questions: chosen of the training file.
        test_questions: chosen of HotpotQA's validation file.
        passages: most of the corpus. First come the supporting paragraphs of all questions, which
            are always there, then the others of the test questions, then those of training.
    """

    repo: str
    revision: str
    files: Mapping[str, PublicFile]
    use: str
    train_questions: int
    test_questions: int
    passages: int
    extra_bytes: int = 0

    def __post_init__(self) -> None:
        self.files = public_files(self.files)

    def build(self, fetched: Mapping[str, Path], folder: Path) -> dict[str, int]:
        """See `zerosearch.data.public_sets.PublicSet.build`."""
        wanted = {"train": self.train_questions, "test": self.test_questions}
        chosen = {split: self._chosen(fetched[split], split, wanted[split]) for split in SPLITS}
        counts = {}
        for split, rows in chosen.items():
            path = folder / f"qa_{split}.jsonl"
            with replacing(path) as out:
                for index, row in enumerate(rows):
                    line = question_to_row(_question(row), split, index)
                    out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            counts[path.name] = count_questions(path)
        write_corpus(folder / CORPUS, _corpus(chosen, self.passages))
        return {**counts, CORPUS: count_passages(folder / CORPUS)}

    def _chosen(self, path: Path, split: str, count: int) -> list[dict[str, Any]]:
        """A fixed selection of the rows, in the order of the file; only these are decoded."""
        file = self.files[split]
        try:
            with pyarrow.parquet.ParquetFile(path) as table:
                rows = at_least(table.metadata.num_rows, file)
                places = derive_random("hotpotqa_small", split).sample(range(rows), count)
                return list(_taken(table, sorted(places)))
        except pyarrow.ArrowException as error:
            raise InputError(f"{file.path} cannot be read ({error})") from error


def _taken(table: pyarrow.parquet.ParquetFile, places: list[int]) -> Iterator[dict[str, Any]]:
    start = 0
    columns = ["id", "question", "answer", "type", "level", "supporting_facts", "context"]
    for batch in table.iter_batches(batch_size=1000, columns=columns):
        here = [place - start for place in places if start <= place < start + len(batch)]
        yield from batch.take(pyarrow.array(here, pyarrow.int64())).to_pylist()
        start += len(batch)


def _question(row: Mapping[str, Any]) -> Question:
    kept = {name: row[name] for name in ("id", "type", "level")}
    return Question(
        uid=row["id"],
        text=row["question"].strip(),
        golden_answers=(row["answer"].strip(),),
        source="hotpotqa",
        metadata=kept,
    )


def _corpus(chosen: Mapping[str, Iterable[Mapping[str, Any]]], most: int) -> Iterator[Passage]:
    """Paragraphs of all questions, each once, ordered by title."""
    supporting: dict[tuple[str, str], None] = {}  # as ordered sets
    others: dict[tuple[str, str], None] = {}
    for split in ("test", "train"):
        for row in chosen[split]:
            needed = set(row["supporting_facts"]["title"])
            texts = map("".join, row["context"]["sentences"])
            for title, text in zip(row["context"]["title"], texts, strict=True):
                if text.strip():
                    group = supporting if title in needed else others
                    group[title.strip(), text.strip()] = None
            if missing := needed - set(row["context"]["title"]):
                raise InputError(f"question {row['id']} lacks its paragraph {missing.pop()!r}")
    for paragraph in others:
        if len(supporting) >= most:
            break
        supporting[paragraph] = None
    for number, (title, text) in enumerate(sorted(supporting)):
        yield Passage(id=str(number), title=title, text=text)
