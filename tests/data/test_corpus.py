import gzip
import json

import pytest

from zerosearch.data.corpus import (
    Passage,
    join_contents,
    read_corpus,
    split_contents,
    write_corpus,
)


def write_lines(path, *lines):
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    )
    return path


def row(identity="0", contents='"Lyon"\nA city.'):
    return json.dumps({"id": identity, "contents": contents})


def test_reads_titles_and_texts_in_file_order(tmp_path):
    path = write_lines(
        tmp_path / "c.jsonl",
        row("7", '"Lyon"\nA city on the Rhône.'),
        "",
        json.dumps({"id": 3, "contents": "no title here\nbut two lines"}),
    )
    assert read_corpus(path) == [
        Passage(id="7", title="Lyon", text="A city on the Rhône."),
        Passage(id="3", title="", text="no title here\nbut two lines"),
    ]


def test_reads_titles_beside_texts(tmp_path):
    rows = [
        {"id": 3, "title": "Lyon", "text": "A city."},
        {"id": "4", "text": "No title."},
        {"id": "5", "title": "", "text": '"Quoted"\nline', "contents": None},
        {"id": "6", "title": None, "text": '"In the text"\nline'},
    ]
    path = write_lines(tmp_path / "c.jsonl", *map(json.dumps, rows))
    assert read_corpus(path) == [
        Passage(id="3", title="Lyon", text="A city."),
        Passage(id="4", title="", text="No title."),
        Passage(id="5", title="", text='"Quoted"\nline'),
        Passage(id="6", title="In the text", text="line"),
    ]


def test_reads_gzip_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + row().encode()))
    assert [passage.title for passage in read_corpus(path)] == ["Lyon"]


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ('"Lyon"\nA city.', "Lyon", "A city."),
        ('"The "Heroes" Symphony"\nBy Glass.', 'The "Heroes" Symphony', "By Glass."),
        ('""Heroes""\nAn album.', '"Heroes"', "An album."),
        ('""\nUntitled text.', "", "Untitled text."),
        ('" Lyon " \r\n A city. ', "Lyon", "A city."),
        ("Just text.", "", "Just text."),
        ('"Said in one line"', "", '"Said in one line"'),
        ('"\nA lone quote.', "", '"\nA lone quote.'),
        ('"Lyon"\u2028x"\nA city.', 'Lyon"\u2028x', "A city."),
        ('"Lyon"\nOne.\nTwo.', "Lyon", "One.\nTwo."),
    ],
)
def test_contents_split(contents, title, text):
    assert split_contents(contents) == (title, text)


@pytest.mark.parametrize(
    ("line", "field", "problem"),
    [
        ("{not json", "column 2", "not valid JSON"),
        (b'{"id": "1", "contents": "\xff"}', "0xff", "not UTF-8"),
        ('{"id": ' + "[" * 100_000, "lists", "more than 64 deep"),
        ('{"id": ' + "7" * 5_000 + "}", "a number", "more than 4300 digits"),
        ('{"id": "1", "title": 3, "text": "x"}', "'title'", "3"),
        ('{"id": "1", "title": "T"}', "'contents'", "'text'"),
        ('{"id": "1", "title": "T", "text": " "}', "'text'", "no text"),
        ('["1", "text"]', "row", "list"),
        ('{"contents": "text"}', "'id'", "missing"),
        ('{"id": "1"}', "'contents'", "missing"),
        ('{"id": "1", "contents": null}', "'contents'", "None"),
        ('{"id": true, "contents": "text"}', "'id'", "True"),
        ('{"id": 1.5, "contents": "text"}', "'id'", "1.5"),
        ('{"id": " ", "contents": "text"}', "'id'", "empty"),
        ('{"id": "1", "contents": "  "}', "'contents'", "no text"),
        (row("1", '"Title only"\n'), "'contents'", "no text"),
        ('{"id": "1", "contents": "half \\ud83d"}', "'text'", "half a character"),
        (row("0"), "'id'", "used before on line 1"),
    ],
)
def test_a_bad_row_names_file_line_and_field(tmp_path, line, field, problem):
    path = write_lines(tmp_path / "bad.jsonl", row("0"), "", line, row("9"))
    with pytest.raises(ValueError) as caught:
        read_corpus(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3: ")
    assert field in message
    assert problem in message


def test_a_file_that_is_missing_misnamed_or_empty_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jsonl does not exist"):
        read_corpus(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match=r"must end in \.jsonl or \.jsonl\.gz"):
        read_corpus(tmp_path / "corpus.json")
    with pytest.raises(ValueError, match="no passages"):
        read_corpus(write_lines(tmp_path / "empty.jsonl", "", ""))


@pytest.mark.parametrize("damage", ["cut", "not gzip", "flipped"])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    rows = "\n".join(row(str(i), f'"T{i}"\nText {i * 7919} of it.') for i in range(500))
    packed = bytearray(gzip.compress(rows.encode()))
    packed = {
        "cut": packed[: len(packed) // 2],
        "not gzip": bytearray(rows.encode()),
        "flipped": packed[:60] + bytes(40) + packed[100:],
    }[damage]
    path = tmp_path / "damaged.jsonl.gz"
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=r"damaged\.jsonl\.gz, .*line \d+"):
        read_corpus(path)


PASSAGES = [
    Passage(id="0", title="Łódź", text="A city.\nIn Poland."),
    Passage(id="b", title='The "Heroes" Symphony', text="By Glass."),
    Passage(id="2", title="", text="No title."),
    Passage(id="3", title="", text='"Quoted opening"\nand more, still no title.'),
    Passage(id="4", title="", text='"A quotation."'),
]


@pytest.mark.parametrize("name", ["c.jsonl", "deep/er/c.jsonl.gz"])
def test_written_corpora_read_back_the_same(tmp_path, name):
    write_corpus(tmp_path / name, PASSAGES)
    assert read_corpus(tmp_path / name) == PASSAGES


def test_written_rows_have_the_search_r1_form(tmp_path):
    write_corpus(tmp_path / "c.jsonl", PASSAGES[:1])
    assert json.loads((tmp_path / "c.jsonl").read_text()) == {
        "id": "0",
        "contents": '"Łódź"\nA city.\nIn Poland.',
    }


def test_equal_corpora_give_equal_bytes(tmp_path, monkeypatch):
    write_corpus(tmp_path / "a.jsonl.gz", PASSAGES)
    monkeypatch.setattr("time.time", lambda: 4e9)
    write_corpus(tmp_path / "b.jsonl.gz", PASSAGES)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "c.jsonl"
    write_corpus(path, PASSAGES)
    with pytest.raises(ValueError, match="'b' in two passages"):
        write_corpus(path, [PASSAGES[1], PASSAGES[1]])
    assert read_corpus(path) == PASSAGES
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": " "}, "'text' is empty"),
        ({"id": ""}, "'id' is empty"),
        ({"title": "two\nlines"}, "one line"),
        ({"title": None}, "'title' is None"),
    ],
)
def test_a_passage_checks_its_fields(changes, message):
    with pytest.raises(ValueError, match=message):
        Passage(**{"id": "0", "title": "T", "text": "x", **changes})


def test_joined_contents_keep_a_quoted_title():
    assert join_contents('"Heroes"', "An album.") == '""Heroes""\nAn album.'
