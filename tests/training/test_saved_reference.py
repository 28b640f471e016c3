"""Checkpoints without the reference that the policy's files give, in a file and in a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import sharded_training
from tests.helpers.sharded_training import Job, train
from tests.helpers.words import save_word_policy
from zerosearch.policy.checkpoints import is_sharded_checkpoint, read_checkpoint
from zerosearch.policy.reference import ReferencePolicy


@pytest.fixture(autouse=True)
def one_group() -> Iterator[None]:
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(params=[False, True], ids=["file", "folder"])
def sharded(request: pytest.FixtureRequest) -> bool:
    return request.param


def run(folder: Path, name: str, sharded: bool, **fields: Any) -> dict[str, Any]:
    """Some steps, each of them saved, of one process; returns what it left behind."""
    policy = folder / "policy"
    if not policy.exists():
        save_word_policy(policy)
    job = Job(policy=policy, out=folder / name, sharded=sharded, **{"steps": 2, **fields})
    train(0, 1, dataclasses.replace(job, checkpoints=folder / f"{name} saved"))
    return torch.load(folder / f"{name}.0")


def step(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name} saved" / f"step_{number:06d}.ckpt"


def reference_in(checkpoint: Path) -> tuple[list[str], str | None]:
    """Names of the reference's tensors, and the digest that stands in their place."""
    saved = read_checkpoint(checkpoint)
    names = [name for name in saved["state_dict"] if name.startswith("reference.")]
    return names, saved["zerosearch"]["reference"]


def assert_same_end(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Weights, reference included, and the KL to it."""
    assert any(name.startswith("reference.") for name in one["weights"])
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name]), name
    assert one["metrics"]["loss/kl"] == other["metrics"]["loss/kl"] > 0


def test_invariant_13_a_run_resumes_without_a_saved_reference(
    sharded: bool, tmp_path: Path
) -> None:
    whole = run(tmp_path, "whole", sharded)
    saved = step(tmp_path, "whole", 1)
    names, digest = reference_in(saved)
    assert is_sharded_checkpoint(saved) == sharded and names == [] and digest is not None
    assert_same_end(run(tmp_path, "again", sharded, resume=saved), whole)
    assert reference_in(step(tmp_path, "again", 2)) == ([], digest)


def test_a_folder_and_a_file_name_the_same_reference(tmp_path: Path) -> None:
    for sharded in (False, True):
        run(tmp_path, f"{sharded}", sharded)
    file, folder = step(tmp_path, "False", 1), step(tmp_path, "True", 1)
    assert reference_in(file) == reference_in(folder)


def test_other_files_are_refused(sharded: bool, tmp_path: Path) -> None:
    run(tmp_path, "whole", sharded)
    digest = reference_in(step(tmp_path, "whole", 1))[1]
    save_word_policy(tmp_path / "policy", 1)
    named = rf"fingerprint {digest}, but model\.path={tmp_path / 'policy'} now gives .*: set model"
    with pytest.raises(ValueError, match=named):
        run(tmp_path, "again", sharded, resume=step(tmp_path, "whole", 1))


def test_a_reference_that_was_reset_is_saved(
    sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = dataclasses.replace(sharded_training.GRPO, reference_reset_steps=1)
    monkeypatch.setattr(sharded_training, "GRPO", algorithm)
    whole = run(tmp_path, "whole", sharded, steps=3)
    assert reference_in(step(tmp_path, "whole", 1))[0] == []
    names, digest = reference_in(step(tmp_path, "whole", 2))
    assert names and digest is None
    save_word_policy(tmp_path / "policy", 1)  # of which a resumed run needs nothing
    resumed = run(tmp_path, "again", sharded, steps=3, resume=step(tmp_path, "whole", 2))
    assert resumed["weights"].keys() == whole["weights"].keys()
    assert all(torch.equal(t, resumed["weights"][n]) for n, t in whole["weights"].items())


def test_a_checkpoint_that_holds_it_all_the_same_is_resumed(
    sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of earlier versions do."""
    make = ReferencePolicy.from_policy

    def make_moved(*models: Any) -> ReferencePolicy:
        reference = make(*models)
        reference.moved = True
        return reference

    with monkeypatch.context() as patch:
        patch.setattr(ReferencePolicy, "from_policy", make_moved)
        whole = run(tmp_path, "whole", sharded)
    saved = step(tmp_path, "whole", 1)
    assert reference_in(saved)[0]
    save_word_policy(tmp_path / "policy", 1)
    assert_same_end(run(tmp_path, "again", sharded, resume=saved), whole)
