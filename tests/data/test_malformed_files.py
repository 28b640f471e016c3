"""Data files that are cut, damaged or made to hurt: one sentence with file and row."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.hostile_rows import GOOD, ROWS, damaged, read_both_ways, write_good
from zerosearch.core.errors import InputError
from zerosearch.core.memory import PeakMemory
from zerosearch.data.corpus import read_corpus
from zerosearch.data.json_lines import MAX_ROW_BYTES
from zerosearch.data.public_sets import count_questions

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", f"{GOOD}\n{DEEP}", r"a\.jsonl, line 2: lists or objects .* 64 deep"),
        ("a.jsonl", f'{GOOD}\n{{"question": {"7" * 5_000}}}', r"line 2: a number has more than"),
        ("a.jsonl", f"{GOOD}\n" + '{"question": "Q\\ud83d", "answer": "A"}', r"line 2: .*half a"),
        ("a.jsonl", b'\xff\xfe{\x00"\x00', r"a\.jsonl, line 1: not UTF-8"),
        ("a.json", f'[{GOOD},\n{{"x": {DEEP}', r"a\.json, line 2: lists or objects"),
        ("a.json", f"[{GOOD},\n[{'7' * 5_000}]]", r"a\.json, line 2: a number has more than"),
        ("a.json", '{"Data": 5}', r"a\.json, line 1: .* no (question|known)|line 1: no question"),
        ("a.json", '{"Data": [1], "Data": 5}', r"a\.json: 'Data' is 5; it must be an array"),
        ("a.json", '{"Data": [[]]}', r"a\.json, row 0 .*must be an object"),
        ("a.json", f'[{GOOD},\n"half \\ud83d"]', r"a\.json, row 1 .*must be an object"),
        ("a.csv", "question,answer\nQ,A\nQ,A,B\n", r"a\.csv, row 1 .*more or fewer fields"),
        ("a.csv", "question,question\nQ,A\n", r"heading has 'question' twice"),
        ("a.csv", f"question,answer\nQ,A\nQ,{'x' * 200_000}\n", r"a\.csv, line 3: .*field larger"),
        ("a.csv", 'question,answer\nQ,"A"x\n', r"a\.csv, line 2: cannot be read"),
        ("a.tsv", "question\tgolden_answers\nQ\t['a' 'b']\n", r"a\.tsv, row 0 .*looks like a list"),
        ("a.parquet", "PAR1 and no more", r"a\.parquet: cannot be read \(Arrow"),
    ],
)
def test_a_malformed_file_is_one_sentence(
    name: str, text: str | bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (read_both_ways, count_questions):
        with pytest.raises(InputError, match=said) as error:
            read(path)
        assert len(str(error.value)) < 600 + len(str(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "corpus.jsonl.gz"])
def test_a_line_larger_than_any_row_fills_no_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with gzip.open(path, "wb", compresslevel=1) as file:  # some kilobytes on the disk
        file.write(f"{GOOD}\n".encode() if name[0] == "a" else b'{"id": 1, "contents": "x"}\n')
        for _ in range(5):
            file.write(bytes(MAX_ROW_BYTES // 4))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"line 2: it has more than 64 MiB; write one row per"):
        read_both_ways(path) if name[0] == "a" else read_corpus(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_ROW_BYTES


def test_a_parquet_row_larger_than_any_row_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"question": ["Q"], "answer": ["A" * (MAX_ROW_BYTES + 9)]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    with pytest.raises(InputError, match=r"a\.parquet, row 0 .* more than 64 MiB a row"):
        read_both_ways(path)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("list", r"row 1 \(counting from 0\): 2048 MiB, more than 64 MiB a row"),
        ("map", r"row 1 \(counting from 0\): 2048 MiB, more than 64 MiB a row"),
        (
            "rows",
            r"rows 1000 to 1999 \(counting from 0\): 2000 MiB, more than .* 1024 MiB together",
        ),
    ],
)
def test_a_parquet_value_that_stands_once_and_is_named_often_fills_no_memory(
    name: str, place: str, tmp_path: Path
) -> None:
    path, rows = tmp_path / "a.parquet", 3 if name != "rows" else 2000
    texts = pa.array(["A" * 2**21, "A"], pa.string())
    if name == "rows":
        answers = pa.DictionaryArray.from_arrays([1] * 1000 + [0] * 1000, texts)
    else:
        named = pa.DictionaryArray.from_arrays([1] + [0] * 1024 + [1], texts)
        offsets = pa.array([0, 1, 1025, 1026], pa.int32())
        keys = pa.array([f"k{number}" for number in range(1026)])
        answers = (
            pa.ListArray.from_arrays(offsets, named)
            if name == "list"
            else pa.MapArray.from_arrays(offsets, keys, named)
        )
    table = pa.table({"question": ["Q"] * rows, "golden_answers": answers})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    peak = PeakMemory()
    peak.reset()
    before = peak.bytes()
    with pytest.raises(InputError, match=rf"a\.parquet, {place}"):
        read_both_ways(path)
    assert peak.bytes() - before < 256 * 2**20


def test_answers_that_are_named_often_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerosearch.data.parquet_files.MAX_ROW_BYTES", 2**18)
    path = tmp_path / "a.parquet"
    rows = [
        {"question": f"Q{n}", "golden_answers": ["yes" * 200] * (n % 2 + 1)} for n in range(2000)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert len(read_both_ways(path)) == 2000


def test_files_that_are_read_whole_have_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerosearch.data.whole_files.MAX_BYTES", 1 << 20)
    for name, text in (("a.json", "["), ("a.csv", "question,answer\n")):
        (tmp_path / name).write_text(text + " " * (1 << 21))
        with pytest.raises(InputError, match=r"has 2 MiB, and .* up to 1 MiB: write it as \.jsonl"):
            read_both_ways(tmp_path / name)


def test_values_that_python_does_not_have_name_their_place(tmp_path: Path) -> None:
    table = pa.table(
        {"question": ["Q"], "answer": ["A"], "day": pa.array([2**50], pa.timestamp("s"))}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read after 0 rows"):
        read_both_ways(tmp_path / "a.parquet")


FUZZED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZED
@given(row=ROWS, name=st.sampled_from(["a.jsonl", "a.json"]))
def test_any_row_is_a_question_or_one_sentence(row: dict, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(f"[{json.dumps(row)}]" if name == "a.json" else json.dumps(row))
    for read in (read_both_ways, count_questions):
        try:
            read(path)
        except InputError as error:
            assert str(path) in str(error)
            str(error).encode()  # can be printed


@FUZZED
@given(
    kind=st.sampled_from([".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet"]),
    at=st.floats(0, 1),
    cut=st.integers(0, 40),
    put=st.binary(max_size=12),
)
def test_any_damage_is_nothing_or_one_sentence(
    kind: str, at: float, cut: int, put: bytes, tmp_path: Path
) -> None:
    path = write_good(tmp_path / f"a{kind}")
    path.write_bytes(damaged(path.read_bytes(), at, cut, put))
    try:
        read_both_ways(path)
    except InputError as error:
        assert f"a{kind}" in str(error)
        str(error).encode()
