"""A coroutine beside the training thread: its result, its errors, its end."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from zerosearch.training.background import Background

CPU = torch.device("cpu")


def test_it_runs_beside_its_caller_on_a_thread_of_its_own() -> None:
    go_on = threading.Event()

    async def work() -> str:
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        return threading.current_thread().name

    running = Background(work(), CPU)
    go_on.set()  # nobody else could while it waits
    assert running.result() == "background"
    assert "background" not in {thread.name for thread in threading.enumerate()}


def test_it_computes_in_the_precision_of_its_caller() -> None:
    async def work() -> torch.dtype:
        await asyncio.sleep(0)
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    assert Background(work(), CPU).result() == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        running = Background(work(), CPU)
    assert running.result() == torch.bfloat16


def test_an_error_reaches_who_asks_for_the_result() -> None:
    async def work() -> None:
        raise ValueError("the prompt is too long")

    with pytest.raises(ValueError, match="the prompt is too long"):
        Background(work(), CPU).result()


def test_what_is_called_off_cleans_up_before_the_caller_goes_on() -> None:
    steps: list[str] = []
    started = threading.Event()

    async def work() -> None:
        try:
            started.set()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    running = Background(work(), CPU)
    started.wait()
    running.cancel()
    assert steps == ["cleaned up"]


def test_what_has_ended_can_be_called_off() -> None:
    async def work() -> int:
        return 1

    running = Background(work(), CPU)
    assert running.result() == 1
    running.cancel()
