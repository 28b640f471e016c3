from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.core.files import replacing

CHECKPOINT = {"state_dict": {"weight": torch.arange(50_000.0)}, "loops": {"step": [1, 2]}}


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "run" / "step_000001.ckpt"
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)
    return path


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 60 kB; writing further fails as on a full disk does.

    It holds for every file of the process, the log that pytest may be printing to included, so the
    block must print nothing.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_saves_and_loads_plain_containers_and_leaves_nothing_else(saved):
    loaded = AtomicCheckpointIO().load_checkpoint(saved, weights_only=True)
    assert torch.equal(loaded["state_dict"]["weight"], torch.arange(50_000.0))
    assert loaded["loops"] == {"step": [1, 2]}
    assert [path.name for path in saved.parent.iterdir()] == ["step_000001.ckpt"]


@pytest.mark.parametrize("name", ["step_000001.ckpt", "step_000002.ckpt"])
def test_full_disk_leaves_the_earlier_checkpoint_and_no_part(saved, name):
    before = saved.read_bytes()
    with pytest.raises(OSError, match="earlier checkpoints are intact") as raised, full_disk():
        AtomicCheckpointIO().save_checkpoint(CHECKPOINT, saved.with_name(name))
    assert raised.value.errno == errno.EFBIG
    assert str(saved.with_name(name)) in str(raised.value)
    assert "GiB free" in str(raised.value)
    assert [path.name for path in saved.parent.iterdir()] == ["step_000001.ckpt"]
    assert saved.read_bytes() == before


def test_failing_flush_is_a_failed_save(saved, monkeypatch):
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    before = saved.read_bytes()
    with pytest.raises(OSError, match="No space left on device"):
        AtomicCheckpointIO().save_checkpoint({"other": 1}, saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["step_000001.ckpt"]


def test_objects_that_cannot_be_saved_leave_no_part(saved):
    with pytest.raises((TypeError, AttributeError, RuntimeError)):
        AtomicCheckpointIO().save_checkpoint({"generator": (n for n in range(3))}, saved)
    assert [path.name for path in saved.parent.iterdir()] == ["step_000001.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(saved)["loops"] == {"step": [1, 2]}


def test_storage_options_are_refused(saved):
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(CHECKPOINT, saved, storage_options={})


@pytest.mark.parametrize("size", [0, 100, 100_000, -10])
def test_truncated_file_is_named_with_the_mend(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"step_000001\.ckpt is cut short.*earlier checkpoint"):
        AtomicCheckpointIO().load_checkpoint(saved)


@pytest.mark.parametrize("content", [b"hello", bytes(5000)])
def test_file_of_another_kind_is_named(saved, content):
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="not a checkpoint"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_a_flipped_bit_in_a_weight_is_found(saved):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"step_000001\.ckpt is corrupt.*earlier checkpoint"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_refused_objects_are_not_called_corruption(saved):
    AtomicCheckpointIO().save_checkpoint({"path": Path("x")}, saved)
    for weights_only in (True, False, None):
        with pytest.raises(ValueError, match=r"other than tensors.*\(pathlib\.\w*Path\)"):
            AtomicCheckpointIO().load_checkpoint(saved, weights_only=weights_only)


def test_a_folder_that_is_no_sharded_checkpoint_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"folder without meta\.pt.*earlier checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path)


def test_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "absent.ckpt")


def test_replacing_shows_nothing_before_it_is_whole(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as file:
        file.write(b"part")
        assert not path.exists()
    assert path.read_bytes() == b"part"
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"other")
        raise KeyError
    assert path.read_bytes() == b"part"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_replacing_names_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another folder"), replacing(tmp_path / "file" / "x"):
        pass
