"""Files and hub data sets: what is read, and which error each kind of bad input gives."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zerosearch.data import readers
from zerosearch.data.rows import Columns, question_to_row
from zerosearch.data.sources import QASource, QuestionStream, fixed_selection
from zerosearch.types import Question

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not (SHARED / "qa_test.parquet").exists(), reason=f"real questions are not at {SHARED}"
)


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"question": f"Q{i}?", "answer": f"A{i}"} for i in range(start, start + count)]


def write(path: Path, items: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(item) + "\n" for item in items)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(items), path, row_group_size=4)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(items))
    else:
        path.write_text(text)
    return str(path)


def load(path: str, **kwargs: Any) -> Sequence[Question]:
    loaded = QASource(path=path, **kwargs).load()
    assert isinstance(loaded, Sequence)
    return loaded


def stream(path: str, **kwargs: Any) -> QuestionStream:
    loaded = QASource(path=path, streaming=True, **kwargs).load()
    assert not isinstance(loaded, Sequence)
    return loaded


FORMATS = ["qa.parquet", "qa.jsonl", "qa.jsonl.gz", "qa.json"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_in_memory_and_streaming(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, rows(10))
    expected = [(f"{name}:{i}", f"Q{i}?", (f"A{i}",), name) for i in range(10)]
    for questions in (load(path), stream(path).read(None)):
        assert [(q.uid, q.text, q.golden_answers, q.source) for q in questions] == expected


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("cut", [0, 1, 4, 9, 10, 13, 20])
def test_stream_continues_at_a_saved_position(tmp_path: Path, name: str, cut: int) -> None:
    for part in ("a", "b"):
        write(tmp_path / part / name, rows(10, 0 if part == "a" else 10))
    path = str(tmp_path / "*" / name)
    whole = [q.uid for q in stream(path, label="s").read(None)]
    assert whole == [f"s:{i}" for i in range(20)]
    first = stream(path, label="s")
    reader = first.read(None)
    head = [next(reader).uid for _ in range(cut)]
    state = json.loads(json.dumps(first.state_dict()))  # what a checkpoint can hold
    tail = [q.uid for q in stream(path, label="s").read(state)]
    assert head + tail == whole


def test_streams_continue_anywhere_in_row_groups_and_batches(tmp_path: Path) -> None:
    path = tmp_path / "qa.parquet"
    pq.write_table(pa.Table.from_pylist(rows(2500)), path, row_group_size=1200)
    whole = [q.uid for q in stream(str(path)).read(None)]
    first = stream(str(path))
    for at, _ in enumerate(first.read(None), start=1):
        if at in (1, 999, 1000, 1001, 1200, 1201, 2400, 2500):
            state = json.loads(json.dumps(first.state_dict()))
            again = stream(str(path)).read(state)
            assert [q.uid for q in again] == whole[at:], at


def test_a_position_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "qa.jsonl", rows(3))
    state = {"file": 0, "row": 1, "position": 1, "table": {"examples_iterable": {}, "epoch": 0}}
    with pytest.raises(ValueError, match=r"qa\.jsonl: the checkpoint .* start a new run"):
        list(stream(path).read(state))


def test_json_keeps_dates_and_mixed_forms_as_written(tmp_path: Path) -> None:
    items = [
        {"question": "2020-01-01 10:00:00", "answer": "1851-07-20"},
        {"question": "Born?", "answer": ["1851-07-20", "20 July 1851"], "idx": 3},
    ]
    for name in ("qa.jsonl", "qa.json"):
        questions = load(write(tmp_path / name, items))
        assert questions[0].text == "2020-01-01 10:00:00"
        assert [q.golden_answers for q in questions] == [
            ("1851-07-20",),
            ("1851-07-20", "20 July 1851"),
        ]


def test_json_lines_with_bom_blank_lines_and_unicode_separators(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    first = json.dumps({"question": "Q0\u2028?", "answer": "A0"}, ensure_ascii=False)
    path.write_text("\ufeff" + first + "\n\n" + json.dumps(rows(1)[0]), encoding="utf-8")
    assert [(q.uid, q.text) for q in load(str(path))] == [
        ("qa.jsonl:0", "Q0\u2028?"),
        ("qa.jsonl:1", "Q0?"),
    ]


def test_file_names_with_pattern_characters(tmp_path: Path) -> None:
    path = write(tmp_path / "dir [1]" / "qa.jsonl", rows(3))
    assert len(load(path)) == 3


def test_round_trip_through_a_parquet_file(tmp_path: Path) -> None:
    questions = [
        Question(
            uid=f"geo.parquet:{i}",
            text=f"Q{i}?",
            golden_answers=(f"A{i}", "alias"),
            source="geography",
            metadata={"hops": 1, "subject": "Rome"} if i else {"hops": 2},
        )
        for i in range(3)
    ]
    items = [question_to_row(question, "train", i) for i, question in enumerate(questions)]
    back = load(write(tmp_path / "geo.parquet", items))
    for i, (question, again) in enumerate(zip(questions, back, strict=True)):
        assert again.metadata == {**question.metadata, "split": "train", "index": i}
        assert (again.uid, again.text, again.golden_answers, again.source) == (
            question.uid,
            question.text,
            question.golden_answers,
            question.source,
        )


def test_columns_and_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "qa.jsonl", [{"query": "Q?", "answer": "A"}])
    source = QASource(path=path, columns=Columns(question="query"), label="mine")
    (question,) = source.load()  # type: ignore[misc]
    assert (question.uid, question.text) == ("mine:0", "Q?")
    assert QASource(path="RUC-NLPIR/FlashRAG_datasets", name="nq").label == (
        "RUC-NLPIR/FlashRAG_datasets/nq"
    )


def test_limit_is_one_fixed_selection_spread_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "qa.jsonl", rows(100))
    ten = {q.uid for q in load(path, limit=10)}
    assert len(ten) == 10 and ten < {q.uid for q in load(path, limit=20)}
    assert max(int(uid.split(":")[1]) for uid in ten) > 50
    assert [q.uid for q in stream(path, limit=3).read(None)] == [f"qa.jsonl:{i}" for i in range(3)]
    assert len(load(path, limit=1000)) == 100
    assert fixed_selection(5, 2) == fixed_selection(5, 2)
    with pytest.raises(ValueError, match=r"limit of .* is 0"):
        QASource(path=path, limit=0)


def test_bad_row_names_file_row_and_field(tmp_path: Path) -> None:
    bad = [*rows(3), {"question": "", "answer": "A"}]
    for name, place in (
        ("qa.parquet", "row 3 (counting from 0)"),
        ("qa.jsonl", "line 4"),
        ("qa.json", "row 3 (counting from 0)"),
    ):
        path = write(tmp_path / name, bad)
        with pytest.raises(ValueError, match="empty question") as error:
            load(path)
        assert str(error.value).startswith(f"{path}, {place}: field 'question'")
        with pytest.raises(ValueError, match="empty question"):
            list(stream(path).read(None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "Q?", "answer": "A"}\n{"question":\n', "qa.jsonl, line 2: not valid JSON"),
        ('{"question": "Q?", "answer": "A"}\n[1]\n', r"qa.jsonl, line 2: .*must be an object"),
        ("", "has no rows"),
        ("\n\n", "has no rows"),
    ],
)
def test_bad_json_lines(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(str(path))


def test_bad_json_array(tmp_path: Path) -> None:
    path = tmp_path / "qa.json"
    path.write_text('[{"question": "Q?", "answer": "A"},\n oops]')
    with pytest.raises(ValueError, match=r"qa\.json, line 2: not valid JSON"):
        load(str(path))
    path.write_text("[3]")
    with pytest.raises(ValueError, match=r"qa\.json, row 0 .*must be an object"):
        load(str(path))


@pytest.mark.parametrize("name", ["qa.parquet", "qa.jsonl.gz"])
@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_corrupt_files(tmp_path: Path, name: str, damage: str) -> None:
    whole = Path(write(tmp_path / name, rows(200))).read_bytes()
    if damage == "empty" and name.endswith(".gz"):
        with pytest.raises(ValueError, match="has no rows"):  # a valid stream of nothing
            (tmp_path / name).write_bytes(b"")
            load(str(tmp_path / name))
        return
    broken = {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"not this format\n" * 9}
    (tmp_path / name).write_bytes(broken[damage])
    for read in (load, lambda path: list(stream(path).read(None))):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read .*copy or export it again"):
            read(str(tmp_path / name))


def test_damaged_pages_under_a_sound_footer(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "qa.parquet", rows(2000)))
    content = bytearray(path.read_bytes())
    content[50:4000] = bytes(reversed(content[50:4000]))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"qa\.parquet: cannot be read"):
        load(str(path))


def test_paths_that_name_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qa.xlsx").touch()
    for path, message in (
        (str(tmp_path / "missing.parquet"), "does not exist"),
        ("missing.jsonl", "does not exist"),
        (str(tmp_path / "*.parquet"), "matches no file"),
        (str(tmp_path), "is a directory"),
        (str(tmp_path / "qa.xlsx"), r"extension '\.xlsx', which is not supported; convert"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load(path)
        assert path in str(error.value)


def test_a_pattern_that_matches_a_folder_names_it(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match=r"folder\.json' cannot be read \(Is a directory\); name"):
        load(str(tmp_path / "*.json"))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_sets_go_through_the_library(
    monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    calls = []

    def fake(path: str, name: str | None, **kwargs: Any) -> Any:
        calls.append((path, name, kwargs["split"], kwargs["streaming"]))
        dataset = datasets.Dataset.from_list(rows(5))
        return dataset.to_iterable_dataset() if kwargs["streaming"] else dataset

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr(readers, "_scratch_cache", lambda: None)
    monkeypatch.setattr(readers, "reach_dataset", lambda path: None)
    source = QASource(path="org/set", name="nq", split="dev", streaming=streaming)
    loaded = source.load()
    questions = loaded if isinstance(loaded, Sequence) else loaded.read(None)
    assert [q.uid for q in questions] == [f"org/set/nq:{i}" for i in range(5)]
    assert calls == [("org/set", "nq", "dev", streaming)]


def test_local_files_never_contact_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contacted = []  # recorded, too: the library swallows what its download counter raises

    def look_up(host: str, *args: Any, **kwargs: Any) -> Any:
        contacted.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    for name in FORMATS:
        assert len(load(write(tmp_path / name, rows(3)))) == 3
    assert contacted == []


def test_a_cache_that_cannot_be_written_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    # a path below a regular file cannot be created, not even by root
    monkeypatch.setattr(readers.config, "HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    for name in FORMATS:
        assert len(load(write(tmp_path / name, rows(3)))) == 3


@needs_real_data
def test_real_test_questions() -> None:
    questions = load(str(SHARED / "qa_test.parquet"))
    assert len(questions) == len({q.uid for q in questions}) == 2560
    by_source = {s: sum(q.source == s for q in questions) for s in {q.source for q in questions}}
    assert by_source == dict.fromkeys(("nq", "tq", "popqa", "hotpotqa", "2wiki"), 512)
    assert questions[0].golden_answers == ("20 July 1851",)
    assert questions[0].text.startswith("What is the date of birth of Millicent")
    assert any(len(q.golden_answers) > 1 for q in questions)
    assert not any("<|answer_split|>" in answer for q in questions for answer in q.golden_answers)


@needs_real_data
def test_real_training_questions() -> None:
    path = str(SHARED / "qa_train.jsonl")
    questions = load(path)
    assert len(questions) == len({q.uid for q in questions}) == 8297
    assert questions[0].text == "Which Route 22 runs through a major city?"
    assert questions[0].golden_answers == ("U.S. Route 22",)
    assert list(stream(path, limit=50).read(None)) == list(questions[:50])
