"""Rows of any shape, and files of rows in which some bytes are others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

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
