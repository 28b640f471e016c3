"""Missing or unreachable models and data sets: one sentence, at once, before anything is loaded."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from tests.helpers.waiting import HANG_S, guarded
from zerosearch.core import hub
from zerosearch.core.hub import check_files


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return cache


def cache_snapshot(cache: Path, files: dict[str, str]) -> None:
    """Lay out `files` as the hub client does for owner/model at main."""
    folder = cache / "models--owner--model"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    for name, text in files.items():
        (snapshot / name).write_text(text)


def answer_with(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[str]:
    """Replace the request to the hub; returns the list of asked URLs."""
    asked: list[str] = []

    def request(url: str, **_: object) -> None:
        asked.append(url)
        if error is not None:
            raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", request)
    return asked


def hub_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "answer of the hub")
    return error


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.path=.*no complete model.safetensors there"):
        check_files(str(tmp_path), "weights")
    assert check_files(str(tmp_path), "config")
    (tmp_path / "model.safetensors").write_text("x")
    assert check_files(str(tmp_path), "weights")


def test_folder_without_config_or_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(ValueError, match=r"no complete config.json"):
        check_files(str(tmp_path), "weights")
    with pytest.raises(ValueError, match=r"model.tokenizer_path=.*holds no tokenizer"):
        check_files(str(tmp_path), "tokenizer", field="model.tokenizer_path")


def test_folder_with_a_missing_shard(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").write_text("x")
    with pytest.raises(ValueError, match="holds no weights"):
        check_files(str(tmp_path), "weights")
    (tmp_path / "model-2.safetensors").write_text("x")
    assert check_files(str(tmp_path), "weights")


def test_missing_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no complete tiny.gguf there"):
        check_files(str(tmp_path), "weights", gguf_file="tiny.gguf")


def test_a_folder_that_is_not_there_may_be_what_a_run_will_export() -> None:
    with pytest.raises(ValueError, match=r"model.path=/no/such.* run that first; else correct mod"):
        check_files("/no/such/folder", "weights")


@pytest.mark.parametrize("path", ["./here", "~/x", "a/b/c"])
def test_path_that_is_neither_folder_nor_name(path: str) -> None:
    with pytest.raises(ValueError, match="is not a folder on this machine and cannot be a name"):
        check_files(path, "weights")


def test_cached_model_asks_nobody(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, ConnectionError("no network"))
    cache_snapshot(empty_cache, {"config.json": "{}", "model.safetensors": "x"})
    assert check_files("owner/model", "weights") is True
    assert asked == []


def test_half_cached_model_is_not_taken_for_whole(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, ConnectionError("no network"))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {"config.json": "{}", "model-1.safetensors": "x"}
    cache_snapshot(empty_cache, files | {"model.safetensors.index.json": json.dumps(index)})
    with pytest.raises(ValueError, match="nor in the local hub cache"):
        check_files("owner/model", "weights")


def test_offline_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set.*hf download owner/model"):
        check_files("owner/model", "weights")
    assert asked == []


def test_reachable_model_is_loaded_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, None)
    assert check_files("owner/model", "weights", revision="v2") is False
    assert asked == ["https://huggingface.co/owner/model/resolve/v2/config.json"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (hub_error(errors.GatedRepoError), "is gated: accept its terms"),
        (hub_error(errors.RepositoryNotFoundError), "the hub has no such model: check the name"),
        (hub_error(errors.RevisionNotFoundError), "has no revision None on the hub: choose"),
        (hub_error(errors.EntryNotFoundError), "has no file config.json on the hub"),
        (ConnectionError("refused"), "cannot be reached .ConnectionError.: download it first"),
    ],
)
def test_answers_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    answer_with(monkeypatch, error)
    with pytest.raises(ValueError, match=rf"model.path=owner/model.*{sentence}") as raised:
        check_files("owner/model", "weights")
    assert "\n" not in str(raised.value)


def test_a_silent_network_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(hub, "HUB_TIMEOUT_S", -0.8)  # leaves 0.2 s
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: over.wait(HANG_S))
    with guarded(), pytest.raises(ValueError, match=r"cannot be reached .TimeoutError"):
        check_files("owner/model", "weights")
    over.set()
