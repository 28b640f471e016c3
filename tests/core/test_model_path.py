"""Where `model.path` points to."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerosearch.core.model_path import resolve_path


def test_a_path_is_the_users_and_pkg_names_a_package(tmp_path: Path) -> None:
    assert resolve_path(str(tmp_path)) == str(tmp_path)
    assert resolve_path("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B", "left to the hub"
    assert (Path(resolve_path("pkg://zerosearch/policy/quickstart")) / "config.json").is_file()


@pytest.mark.parametrize("path", ["pkg://no_such_weights", "pkg://no_such_weights/small", "pkg://"])
def test_package_that_is_not_installed(path: str) -> None:
    with pytest.raises(ValueError, match=rf"^model.path={path}: the package .* is not installed"):
        resolve_path(path)


def test_package_is_found_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "shipped_weights"
    (package / "small").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('needs a runtime nobody has')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_path("pkg://shipped_weights") == str(package)
    assert resolve_path("pkg://shipped_weights/small") == str(package / "small")
    with pytest.raises(ValueError, match=r"pkg://shipped_weights/large.*no folder large"):
        resolve_path("pkg://shipped_weights/large")


def test_a_path_longer_than_any_may_be_is_refused() -> None:
    said = r"model\.path cannot be used: File name too long: /9{79}$"
    with pytest.raises(ValueError, match=said):
        resolve_path(f"/{'9' * 5000}/policy")
