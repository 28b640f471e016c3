"""What fuzzing has found (`python -m scripts.attack fuzz`): files that ended in a traceback."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from tests.helpers.words import save_word_policy
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.command_line.arguments import command_of_run, expand_resume
from zerosearch.core.errors import InputError, as_input_errors
from zerosearch.core.journal import Journal
from zerosearch.policy.checkpoints import read_checkpoint, read_notes, read_weights
from zerosearch.policy.source import PolicySource
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.search.store import StoreError, TextStore
from zerosearch.simulator.prompt import SimulatorPrompt
from zerosearch.tuning.judges import LLMJudge

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("at", "cut", "put"), [(0.5, 0, b"\0"), (0.0, 0, b"\0"), (0.0, 1, b""), (0.5, 10**9, b"")]
)
def test_a_checkpoint_with_other_bytes(at: float, cut: int, put: bytes, tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"model.a": torch.ones(2)}, "zerosearch": {}}, file)
    whole = file.read_bytes()
    start = int(at * len(whole))
    file.write_bytes(whole[:start] + put + whole[start + cut :])
    for read in (
        read_checkpoint,
        read_notes,
        lambda path: read_weights(path, "model."),
        AtomicCheckpointIO().load_checkpoint,
    ):
        with pytest.raises(InputError, match=r"last\.ckpt"):
            read(file)


@pytest.mark.parametrize("pickled", [b"\x80\x06.", b"\x80\x04Na.", b"a.", b"\x80\x04\x8c\xff\x94."])
def test_a_checkpoint_whose_pickle_is_none(pickled: bytes, tmp_path: Path) -> None:
    whole, file = tmp_path / "whole", tmp_path / "last.ckpt"
    torch.save({"state_dict": {}}, whole)
    with zipfile.ZipFile(whole) as read, zipfile.ZipFile(file, "w") as written:
        for name in read.namelist():
            of_pickle = name.endswith("data.pkl")
            written.writestr(name, pickled if of_pickle else read.read(name))
    for load in (read_checkpoint, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(InputError, match=r"last\.ckpt"):
            load(file)


@pytest.mark.parametrize(
    "metadata",
    [
        b"\x80\x06.",
        b"\x80\x04\x95" + b"\xff" * 8 + b".",  # a frame of 2^64 bytes
        b"\x80\x04]\x94.",  # a list
        b"\x80\x04\x8c\x01a\x8c\x01bR.",  # a text that is called
        b"\x80\x04\x8c\x02\x94\x94.",
    ],
)
def test_metadata_of_shards_that_are_none(metadata: bytes, tmp_path: Path) -> None:
    torch.save({"zerosearch": {}}, tmp_path / "meta.pt")
    (tmp_path / ".metadata").write_bytes(metadata)
    for read in (read_checkpoint, lambda path: read_weights(path, "model.")):
        with pytest.raises(InputError, match=str(tmp_path)):
            read(tmp_path)


@pytest.mark.parametrize("text", [DEEP, "0", "[]", '{"model_type": 5}', '{"model_type": "llama"'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_policy_whose_json_is_of_another_kind(name: str, text: str, tmp_path: Path) -> None:
    source = PolicySource(path=str(save_word_policy(tmp_path)))
    (tmp_path / name).write_text(text)
    read = source.load_config if name == "config.json" else source.load_tokenizer
    if name == "tokenizer_config.json" and text == '{"model_type": 5}':
        return  # has nothing that is wrong
    with pytest.raises(InputError, match=r"cannot be loaded|could be loaded"):
        read()


@pytest.mark.parametrize("text", [DEEP, "0", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 5}}'])
def test_an_index_of_weights_that_is_none(text: str, tmp_path: Path) -> None:
    source = PolicySource(path=str(save_word_policy(tmp_path)))
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    for read in (source.check, source.load_model, source.safetensors_files):
        with pytest.raises(InputError, match=r"index\.json"):
            read()


@pytest.mark.parametrize("text", [b"\x80{{ query }}", b"{{ " + b"9" * 5000 + b" }}"])
def test_a_template_that_is_no_text_or_no_template(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "prompt.j2"
    file.write_bytes(text)
    with pytest.raises(InputError, match=r"simulator\.prompt_template=.*fix the template"):
        SimulatorPrompt(str(file), 30)
    with pytest.raises(InputError, match=r"judge\.prompt_template=.*fix the template"):
        LLMJudge(object(), prompt_template=str(file))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"episode\.prompt_template=.*fix the template"):
        EpisodeSettings(prompt_template=str(file))


@pytest.mark.parametrize("text", [DEEP, "5", '"ab"', '{"a"'])
def test_a_journal_and_its_settings(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text + "\n")
    with pytest.raises(InputError, match=r"rows\.jsonl, line 1: no row"):
        Journal(file, key="id")
    file.write_text(json.dumps({"id": "a"}) + "\n")
    (tmp_path / "rows.settings.json").write_text(text)
    with pytest.raises(InputError, match=r"rows\.settings\.json does not say"):
        Journal(file, key="id", settings={"seed": 1})


@pytest.mark.parametrize("text", ["{a: 1}", "[[", "- 5", "\xff", "seed=3", "- [a]"])
def test_overrides_of_a_run_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    for name in ("overrides.yaml", "hydra.yaml"):
        (tmp_path / ".hydra" / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"overrides\.yaml"):
        expand_resume([f"resume={tmp_path}"])
    with pytest.raises(InputError, match=r"hydra\.yaml"):
        command_of_run(tmp_path)


def test_a_cache_whose_words_are_others(tmp_path: Path) -> None:
    TextStore(tmp_path, size_gib=1, changes=True).add("key", "text")
    for name in ("cache.db-wal", "cache.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    file = tmp_path / "cache.db"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(0.12109375 * len(whole))] + b"\x80")
    with pytest.raises(StoreError):
        TextStore(tmp_path, size_gib=1, changes=True).get("key")


def test_a_path_that_is_longer_than_any_file_system_takes() -> None:
    with pytest.raises(InputError, match=r"model\.path cannot be used: .*too long"):
        PolicySource(path=f"/{'9' * 5000}").check()


def test_an_error_of_our_own_code_is_not_of_the_input() -> None:
    def ours() -> None:
        PolicySource(path=5)._check_place()  # type: ignore[arg-type]

    with pytest.raises((TypeError, AttributeError)), as_input_errors("x"):
        ours()
    with pytest.raises(InputError, match=r"x: TypeError: the JSON object"), as_input_errors("x"):
        json.loads(5)  # type: ignore[arg-type]
