"""Garbage is collected before and after libraries are imported, also where one is missing."""

import gc
import sys

import pytest

from zerosearch.core.imports import quick_imports


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A process without torch; for each freeze, whether the collector was at rest."""
    calls: list[bool] = []
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(gc, "freeze", lambda: calls.append(not gc.isenabled()))
    return calls


def test_the_collector_rests_while_libraries_are_imported(frozen: list[bool]) -> None:
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled() and frozen == [True]


def test_it_goes_on_where_a_library_is_missing(frozen: list[bool]) -> None:
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()


def test_it_is_left_alone_where_the_libraries_are_there(
    frozen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", gc)  # any module
    with quick_imports():
        assert gc.isenabled()
    assert frozen == []
