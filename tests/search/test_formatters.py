import pytest

from zerosearch.search.formatters import FORMATTERS, get_formatter
from zerosearch.types import Document

LYON = Document(title="Lyon", text="Lyon is a city.")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("search_r1", "Doc 2(Title: Lyon) Lyon is a city."),
        ("verl", "Doc 2(Title: Lyon)\nLyon is a city."),
        ("zerosearch", "Doc 2: Lyon is a city."),
    ],
)
def test_styles(name, shown):
    assert get_formatter(name)(2, LYON) == shown
    assert FORMATTERS[name] is get_formatter(name)


@pytest.mark.parametrize("name", FORMATTERS)
def test_a_document_without_title_shows_no_empty_title(name):
    assert get_formatter(name)(1, Document(text="Lyon is a city.")) == "Doc 1: Lyon is a city."


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'searchr1'.*search_r1, verl, zerosearch"):
        get_formatter("searchr1")
