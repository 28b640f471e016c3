"""A checkpoint becomes a model folder: that of its policy, of which alone it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoTokenizer

from tests.helpers.sharded_training import Job, make_job_module, train
from tests.helpers.words import save_word_policy
from zerosearch.commands.export import main
from zerosearch.core.errors import FileError, InputError
from zerosearch.core.run_date import set_run_date
from zerosearch.policy.conversion import convert
from zerosearch.policy.export import load_settings, save_policy

KINDS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora": True}, "tied": {"tied": True}}


@pytest.fixture(autouse=True)
def one_group() -> Iterator[None]:
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def saved_run(folder: Path, *, sharded: bool, tied: bool = False, **fields: Any) -> Path:
    """A run of one step: its checkpoint, and in `exported` what that has to become."""
    policy = save_word_policy(folder / "policy", tie_word_embeddings=tied)
    job = Job(policy=policy, out=folder / "out", steps=1, sharded=sharded, **fields)
    train(0, 1, dataclasses.replace(job, checkpoints=folder / "run" / "checkpoints"))
    model: dict[str, Any] = {
        "_target_": "zerosearch.policy.source.PolicySource",
        "_convert_": "all",
        "path": str(policy),
    }
    source = make_job_module(job).policy_source
    if source.lora is not None:
        lora = {"_target_": "peft.LoraConfig", "r": 4, "target_modules": "all-linear"}
        model["lora"] = lora
    (folder / "run" / ".hydra").mkdir()
    (folder / "run" / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    trained, found = source.load_model(), torch.load(folder / "out.0")["weights"]
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter.copy_(found[f"model.{name}"])
    save_policy(trained, source.load_tokenizer(), folder / "exported", extra={})
    return folder / "run" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharded", [False, True], ids=["file", "folder"])
def test_what_is_written_is_the_policy(sharded: bool, kind: str, tmp_path: Path) -> None:
    checkpoint = saved_run(tmp_path, sharded=sharded, **KINDS[kind])
    folder = convert(checkpoint, tmp_path / "converted")
    expected = load_file(tmp_path / "exported" / "model.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        found = load_file(folder / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name].to(dtype)) for name in found)
        assert load_settings(folder)["dtype"] == "float32", "what was computed in"
        folder = convert(checkpoint, tmp_path / "half", "bfloat16")


def test_the_date_in_the_prompts_is_that_of_the_run(tmp_path: Path) -> None:
    set_run_date("2026-02-03T10:00:00")
    checkpoint = saved_run(tmp_path, sharded=False)
    set_run_date(None)
    template = tmp_path / "policy" / "chat_template.jinja"
    template.write_text('{{ strftime_now("%d %b %Y") }}{{ messages[0].content }}')
    described = checkpoint.parents[1] / ".hydra" / "config.yaml"
    described.write_text(described.read_text().replace("path:", "chat: true\n  path:"))
    folder = convert(checkpoint, tmp_path / "converted")
    found = AutoTokenizer.from_pretrained(folder).chat_template
    assert found == '{{ "03 Feb 2026" }}{{ messages[0].content }}'


def test_a_folder_is_read_for_the_weights_of_the_policy_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = saved_run(tmp_path, sharded=True, critic=True)
    names: list[str] = []
    size = 0
    read_data = FileSystemReader.read_data

    def watch(self: FileSystemReader, plan: Any, planner: Any) -> Any:
        nonlocal size
        names.extend(item.storage_index.fqn for item in plan.items)
        size += sum(self.storage_data[item.storage_index].length for item in plan.items)
        return read_data(self, plan, planner)

    monkeypatch.setattr(FileSystemReader, "read_data", watch)
    folder = convert(checkpoint, tmp_path / "converted")
    weights = load_file(folder / "model.safetensors")
    assert sorted(names) == sorted(f"state_dict.model.{name}" for name in weights)
    whole = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert size < whole / 6, "the critic and two states of each optimizer are as large"


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (FileError("the disk is full"), SystemExit),
        (InputError("there is no checkpoint"), SystemExit),
        (ValueError("of a library"), ValueError),
    ],
)
def test_only_what_is_written_for_users_ends_the_command_as_a_sentence(
    error: Exception, ending: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["convert", "checkpoint", "folder"])
    monkeypatch.setattr("zerosearch.policy.conversion.convert", refuse)
    with pytest.raises(ending, match=str(error)):
        main()
