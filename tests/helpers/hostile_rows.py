"""Rows of any shape, and files of rows in which some bytes are others."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from zerosearch.data.sources import QASource

ROW = {"question": "Capital of Italy?", "golden_answers": ["Rome"], "extra_info": {"index": 1}}
GOOD = json.dumps(ROW)


def read_both_ways(path: Path) -> list[str]:
    """The questions in memory, which those of a stream equal."""
    loaded = QASource(path=str(path)).load()
    assert isinstance(loaded, Sequence)
    stream = QASource(path=str(path), streaming=True).load()
    assert not isinstance(stream, Sequence)
    assert list(stream.read(None)) == list(loaded)
    return [question.text for question in loaded]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["[", "['a']", "['a' 'b']", "[{}]", "<answer>", "\ud83d", "<|x|>"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["question", "ground_truth", "target", "role", "content", "x"]),
        inner,
        max_size=3,
    ),
    max_leaves=8,
)  # fmt: skip
ROWS = st.dictionaries(
    st.sampled_from(
        ["question", "Question", "prompt", "golden_answers", "reward_model", "reward_spec",
         "answer", "Answer", "answer_aliases", "possible_answers", "data_source", "extra_info",
         "answerable", "id", "Data"]
    ),
    VALUES | st.just("Rome"),
    max_size=6,
)  # fmt: skip


def write_good(path: Path) -> Path:
    """A file of three questions, in the form that its name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([ROW] * 3), path)
    elif path.suffix in (".csv", ".tsv"):
        separator = "," if path.suffix == ".csv" else "\t"
        path.write_text(f"question{separator}answer\n" + f"Q?{separator}'A'\n" * 3)
    else:
        text = f"[{GOOD}]" if path.suffix == ".json" else f"{GOOD}\n" * 3
        data = text.encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def damaged(whole: bytes, at: float, cut: int, put: bytes) -> bytes:
    """Other bytes in place of some; `at` is a share of the length."""
    start = int(at * len(whole))
    return whole[:start] + put + whole[start + cut :]
