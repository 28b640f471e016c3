"""How programs end: one sentence, an exit code, and after a signal in order."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only

from tests.helpers.waiting import HANG_S
from zerosearch.endings import ending_in_words, report_error, sigterm_as_ctrl_c

CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 11.60 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 3.05 GiB is free. If reserved but unallocated memory is large try setting ..."
)


def test_out_of_memory_is_one_sentence_about_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="zerosearch.endings"):
        said = report_error(torch.OutOfMemoryError(CUDA_SAYS))
    first, second = caplog.records
    assert first.levelname == "ERROR" and first.exc_info is None
    assert first.getMessage() in said and "\n" not in said and "total capacity" not in said
    for part in (
        "Tried to allocate 11.60 GiB",
        "module.tokens_per_micro_batch",
        "module.logprob_chunk_tokens",
        "model.gradient_checkpointing=true",
        "generator.gpu_memory_utilization",
        "zerosearch.plan",
    ):
        assert part in said
    assert second.levelname == "DEBUG" and second.exc_info is not None, "the traceback is kept"


def test_another_rank_says_which_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report_error(ValueError("seed=x: a number")) == "ValueError: seed=x: a number"
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    assert report_error(ValueError("no file")) == "ValueError: [rank: 3] no file"


@pytest.mark.parametrize(
    "error", [MisconfigurationException("no GPU"), ImportError("'bitsandbytes' is not installed")]
)
def test_what_a_library_says_to_the_user_has_no_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    report_error(error)
    [said] = caplog.records
    assert said.getMessage() == str(error) and said.exc_info is None


def test_an_error_is_said_without_loading_anything_heavy() -> None:
    code = (
        "import sys, zerosearch.endings as ends; ends.report_error(ValueError('seed=x: a number'));"
        "print([m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and "seed=x: a number" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_what_is_under_way_and_says_how_to_go_on(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    cleaned = []

    async def work() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, number)
        try:
            await asyncio.sleep(HANG_S)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as ended, ending_in_words("run again"):
        asyncio.run(work())
    assert ended.value.code == 130 and cleaned == [True]
    assert [record.getMessage() for record in caplog.records] == ["interrupted: run again"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_error_is_a_sentence_and_the_code_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended, ending_in_words(code=2):
        raise ValueError("seed=x: a number")
    assert ended.value.code == 2
    assert [record.getMessage() for record in caplog.records] == ["seed=x: a number"]


def test_a_program_that_receives_sigterm_itself_goes_on_to() -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        with sigterm_as_ctrl_c():
            signal.raise_signal(signal.SIGTERM)
        assert received == [True]
    finally:
        signal.signal(signal.SIGTERM, before)
