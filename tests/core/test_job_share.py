"""The share of a machine that a job of a sweep gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from zerosearch.core import job_share
from zerosearch.core.job_share import ON_GPU, shares_of_machine, visible_gpus
from zerosearch.planning.fitting import process_bytes


@pytest.mark.parametrize(
    ("visible", "count", "shares"),
    [
        ("4,5,6,7", 4, ["4", "5", "6", "7"]),
        ("4,5,6,7", 2, ["4,5", "6,7"]),
        ("0,1", 3, ["0", "1", "0"]),
        ("GPU-a", 2, ["GPU-a", "GPU-a"]),
    ],
)
def test_each_job_has_its_gpus(
    visible: str, count: int, shares: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in shares_of_machine(count)] == shares
    assert shares_of_machine(1) == [{}], "a job alone has the machine"
    beside = [each[ON_GPU] for each in shares_of_machine(count)]
    assert beside == [str(max(map(shares.count, shares)))] * count


def test_each_job_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(job_share.os, "sched_getaffinity", lambda _: {*range(8)})
    assert threads(3) == ["2"] * 3 and threads(9) == ["1"] * 9
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads(2) == ["5"] * 2


def threads(count: int) -> list[str]:
    return [each["OMP_NUM_THREADS"] for each in shares_of_machine(count)]


def test_jobs_side_by_side_plan_with_their_share_of_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = OmegaConf.create({"devices": 1, "accelerator": "cpu"})
    alone = process_bytes(trainer)
    for name, value in shares_of_machine(2)[0].items():
        monkeypatch.setenv(name, value)
    assert process_bytes(trainer) == alone // 2


def test_gpus_are_counted_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    listed = "GPU 0: NVIDIA H100 (UUID: GPU-a)\\n  MIG 1g: Device 0\\nGPU 1: NVIDIA H100"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{listed}\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus() == ["0", "1"]
