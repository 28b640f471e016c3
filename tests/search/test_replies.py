import pytest

from zerosearch.search.replies import parse_documents


def texts(reply, top_k=5):
    return [document.text for document in parse_documents(reply, top_k)]


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


def test_fewer_than_k_are_accepted():
    assert texts("Doc 1: only this", top_k=5) == ["only this"]


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
    ],
)
def test_a_reply_without_documents(reply):
    assert texts(reply) == []


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
