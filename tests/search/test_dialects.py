import pytest

from zerosearch.search.dialects import DIALECTS, get_dialect
from zerosearch.types import Document

LYON = {"id": "0", "contents": '"Lyon"\nA city on the Rhône.'}
LIMA = {"id": "1", "contents": "The capital of Peru."}
TITLED = [
    {"id": "0", "title": "Lyon", "text": "A city on the Rhône."},
    {"id": "1", "title": "", "text": "The capital of Peru."},
]
FOUND = [
    Document(title="Lyon", text="A city on the Rhône."),
    Document(title="", text="The capital of Peru."),
]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("search_r1", {"queries": ["who?"], "topk": 4, "return_scores": True}),
        ("skyrl", {"query": "who?", "topk": 4, "return_scores": True}),
        ("search_r1_web", {"queries": ["who?"]}),
        ("zerosearch_wiki", {"query": "who?", "top_k": 4}),
    ],
)
def test_each_dialect_asks_in_its_own_form(name, body):
    assert get_dialect(name).body("who?", 4) == body


def scored(*rows):
    return {"result": [[{"document": row, "score": 1.0} for row in rows]]}


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("search_r1", scored(LYON, LIMA)),
        ("search_r1", {"result": [[LYON, LIMA]]}),
        ("skyrl", scored(LYON, LIMA)),
        ("skyrl", scored(LYON["contents"], LIMA["contents"])),
        ("search_r1_web", {"result": [[{"document": {"contents": LYON["contents"]}}, LIMA]]}),
        ("zerosearch_wiki", [{"text": LYON["contents"]}, {"text": LIMA["contents"]}]),
        ("search_r1", scored(*TITLED)),
        ("skyrl", {"result": [TITLED]}),
        ("search_r1", scored(TITLED[0], {"id": "1", "text": "The capital of Peru."})),
        ("zerosearch_wiki", TITLED),
    ],
)
def test_documents_come_in_the_order_of_the_server_with_their_titles(name, reply):
    assert get_dialect(name).parse(reply) == FOUND


@pytest.mark.parametrize("name", DIALECTS)
def test_no_documents_are_an_answer(name):
    reply = [] if name == "zerosearch_wiki" else {"result": [[]]}
    assert get_dialect(name).parse(reply) == []


@pytest.mark.parametrize(
    ("name", "reply", "missing"),
    [
        ("search_r1", {"detail": "no"}, "'result' is missing in an object with 'detail'"),
        ("search_r1", [LYON], "'result' is missing in a list of 1"),
        ("search_r1", None, "'result' is missing in null"),
        ("search_r1", {}, "'result' is missing in an empty object"),
        ("search_r1", {"result": []}, "one list of documents, but a list of 0"),
        ("search_r1", {"result": [[], []]}, "one list of documents, but a list of 2"),
        ("search_r1", {"result": [LYON]}, "one list of documents, but a list of 1"),
        ("search_r1", {"result": {"0": []}}, "one list of documents, but an object with '0'"),
        ("skyrl", scored({"id": "x"}), "'contents' is missing in an object with 'id'"),
        ("skyrl", scored(None), "'contents' is missing in null"),
        ("skyrl", scored({"title": "x"}), "'text' is missing in an object with 'title'"),
        ("skyrl", scored({"title": "x", "text": 3}), "'text' is no text, but a value of type int"),
        ("skyrl", scored({"title": [], "text": "x"}), "'title' is no text, but a list of 0"),
        ("search_r1_web", {"result": [[7]]}, "'contents' is missing in a value of type int"),
        ("search_r1_web", scored({"contents": None}), "'contents' is no text, but null"),
        ("zerosearch_wiki", {"result": [[]]}, "no list of documents, but an object with 'result'"),
        ("zerosearch_wiki", [LYON], "'text' is missing in an object with 'id', 'contents'"),
    ],
)
def test_another_form_is_refused_with_what_is_missing(name, reply, missing):
    with pytest.raises(ValueError) as refused:
        get_dialect(name).parse(reply)
    assert missing in str(refused.value)


def test_a_message_shows_names_of_fields_and_never_what_they_say():
    with pytest.raises(ValueError) as refused:
        get_dialect("search_r1").parse({"k" * 500: "sk-secret", **{str(i): 0 for i in range(50)}})
    assert "sk-secret" not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_an_unknown_dialect_lists_the_known_ones():
    with pytest.raises(ValueError, match="dialect='verl' is unknown; choose one of search_r1, "):
        get_dialect("verl")
