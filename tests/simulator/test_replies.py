import json

import pytest

from tests.helpers.waiting import guarded
from zerosearch.simulator.replies import MAX_DOCUMENT_CHARS, parse_reply


def texts(reply, top_k=5, finish_reason="stop"):
    return [document.text for document in parse_reply(reply, top_k, finish_reason).documents]


def judged(reply, top_k=2, finish_reason="stop"):
    """Number of documents, problems, and whether another attempt may bring more."""
    parsed = parse_reply(reply, top_k, finish_reason)
    return len(parsed.documents), parsed.problems, parsed.is_short


def test_lines_become_documents_in_order():
    assert texts("Doc 1: Lyon is a city.\nDoc 2: The Rhône is a river.") == [
        "Lyon is a city.",
        "The Rhône is a river.",
    ]


def test_a_document_may_have_several_lines():
    assert texts("Doc 1: one\ntwo\n\nthree\nDoc 2: four") == ["one\ntwo\n\nthree", "four"]
    assert texts("Doc 1:\none\nDoc 2:\ntwo") == ["one", "two"]


def test_text_before_the_first_document_is_dropped():
    assert texts("Sure! Here are 2 documents:\n\nDoc 1: a\nDoc 2: b") == ["a", "b"]


def test_only_the_first_k_are_kept():
    reply = "\n".join(f"Doc {number}: text {number}" for number in range(1, 8))
    assert texts(reply, top_k=3) == ["text 1", "text 2", "text 3"]
    assert texts(reply, top_k=1) == ["text 1"]


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I am sorry, I cannot help with that.",
        "Doc 1:",
        "Doc 1:\nDoc 2:  \n",
        "As Doc 1: says in the middle of a line",
        "Docs 1: no",
        "Doc one: no",
        "1. no marker",
        "Doc 1: ...\nDoc 2: ...",
    ],
)
def test_a_reply_without_documents(reply):
    assert texts(reply) == []


ROWS = [{"id": 1, "title": " A\nCity ", "text": "Lyon."}, {"id": "2", "text": "Lima."}]


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(ROWS),
        f"```json\n{json.dumps(ROWS, indent=2)}\n```",
        "\n".join(map(json.dumps, ROWS)),
        f"<think>[1]</think>{json.dumps(ROWS)}",
    ],
)
def test_documents_as_json(reply):
    assert [(found.title, found.text) for found in parse_reply(reply, 2).documents] == [
        ("A City", "Lyon."),
        ("", "Lima."),
    ]
    assert judged(reply, 2) == (2, (), False)
    assert judged(reply, 3) == (2, ("too_few",), True)
    assert judged(reply, 1) == (1, ("too_many",), False)


@pytest.mark.parametrize(
    "reply",
    ["[1]", "{}", "[" * 100_000, "[" + "7" * 5_000 + "]", '[{"text": 3}]', "[[]]", '{"text": "cut',
     '[{"text": "?"}]', '[{"title": 3, "text": "x"}]'],
)  # fmt: skip
def test_other_json_is_no_document(reply):
    assert judged(reply, 2) == (0, ("no_documents",), True)


def test_empty_documents_do_not_count_towards_k():
    assert texts("Doc 1:\nDoc 2: b\nDoc 3: c", top_k=2) == ["b", "c"]


@pytest.mark.parametrize(
    "reply",
    [
        "**Doc 1:** a\n**Doc 2:** b",
        "**Doc 1**: a\n\n**Doc 2**: b",
        "### Document 1: a\n### Document 2: b",
        "- Doc 1: a\n- Doc 2: b",
        "[Doc 1]: a\n[Doc 2]: b",
        "doc 1 : a\nDOC #2: b",
        "Doc 1：a\nDoc 2：b",
        "  Doc 1: a\r\n  Doc 2: b\r\n",
        "```text\nDoc 1: a\nDoc 2: b\n```",
        "Doc 1: a\n\n---\n\nDoc 2: b\n\n***",
    ],
)
def test_decorated_replies(reply):
    assert texts(reply) == ["a", "b"]


def test_emphasis_inside_a_document_stays():
    assert texts("Doc 1: *Homo sapiens* is **one** species.") == [
        "*Homo sapiens* is **one** species."
    ]


def test_drafts_inside_the_thinking_are_no_documents():
    assert texts("<think>\nDoc 1: draft\n</think>\nDoc 1: final") == ["final"]
    assert texts("<think>\nDoc 1: a thought cut by the token limit") == []


def test_a_mention_of_a_document_inside_a_line_splits_nothing():
    assert texts("Doc 1: a, unlike Doc 2: b\nDoc 2: c") == ["a, unlike Doc 2: b", "c"]


# -- what is wrong with a reply -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Doc 1: a\nDoc 2: b", (2, (), False)),
        ("**Doc 1:** a\n\n---\n\n**Doc 2:** b\n```", (2, (), False)),
        ("<think>Doc 1: draft</think>Doc 1: a\nDoc 2: b", (2, (), False)),
        ("", (0, ("empty",), True)),
        (" \n\n", (0, ("empty",), True)),
        ("<think>\nWhat do they want", (0, ("empty",), True)),
        ("I'm sorry, but I can't help with that.", (0, ("refusal",), True)),
        ("As an AI, I do not browse.", (0, ("refusal",), True)),
        ("I will not write misleading text.", (0, ("refusal",), True)),
        ("Lima is the capital of Peru.", (0, ("no_documents",), True)),
        ("Doc 1:\nDoc 2:", (0, ("no_documents",), True)),
        ("Doc 1: a", (1, ("too_few",), True)),
        ("Doc 1: a\nDoc 2: ...", (1, ("too_few",), True)),
        ("Doc 1: a\nDoc 2: b\nDoc 3: c", (2, ("too_many",), False)),
        ("Sure, here you are:\nDoc 1: a\nDoc 2: b", (2, ("extra_text",), False)),
        ("Doc 1: a\nDoc 2: b\n\nI hope this helps!", (2, ("extra_text",), False)),
        ("Hi!\nDoc 1: a", (1, ("extra_text", "too_few"), True)),
        ("Doc 2: a\nDoc 2: b", (2, ("misnumbered",), False)),
        ("Doc 2: a\nDoc 1: b", (2, ("misnumbered",), False)),
        ("Doc 0: a\nDoc 1: b", (2, ("misnumbered",), False)),
        ("Doc 1: a\nDoc 3: b", (2, ("misnumbered",), False)),
        (f"Doc 1: a\nDoc 2: {'b' * 10**6}", (2, ("too_long",), False)),
    ],
    ids=lambda case: repr(case)[:40],
)
def test_each_problem_has_a_name(reply, expected):
    assert judged(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected", "kept"),
    [
        ("Doc 1: a. b\nDoc 2: c. and th", (1, ("truncated", "too_few"), True), ["a. b"]),
        ("Doc 1: a\nDoc 2: b\nDoc 3: c an", (2, (), False), ["a", "b"]),
        ("Doc 1: One. Two! And the th", (1, ("truncated", "too_few"), True), ["One. Two!"]),
        ("Doc 1: no sentence ends he", (0, ("truncated", "no_documents"), True), []),
        ("Well, let me thi", (0, ("no_documents", "truncated"), True), []),
        ("<think>\nhm", (0, ("empty", "truncated"), True), []),
    ],
    ids=repr,
)
def test_a_reply_that_the_token_limit_cut(reply, expected, kept):
    assert judged(reply, finish_reason="length") == expected
    assert texts(reply, 2, "length") == kept


def test_a_single_document_that_was_cut_is_worth_another_attempt():
    assert judged("Doc 1: One. Tw", top_k=1, finish_reason="length") == (1, ("truncated",), True)


def test_paragraphs_of_the_last_document_are_kept_where_others_have_them():
    assert texts("Doc 1: a\n\nb\nDoc 2: c\n\nd") == ["a\n\nb", "c\n\nd"]
    assert texts("Doc 1: a\nDoc 2: b\n\nNote: made up.") == ["a", "b"]


PIECES = ["x", "-", "x\n", "#", " ", "\n", "Doc 1: ", "Doc 1: a\n", "a. "]


@pytest.mark.parametrize("piece", PIECES, ids=repr)
def test_a_megabyte_is_read_in_linear_time(piece):
    for head in ("", "Doc 1: "):
        with guarded():
            documents = parse_reply(head + piece * (10**6 // len(piece)), 3, "length").documents
        assert sum(len(document.text) for document in documents) <= 3 * MAX_DOCUMENT_CHARS
