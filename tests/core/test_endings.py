"""How programs end: one sentence, an exit code, and after a signal in order."""

from __future__ import annotations

import ast
import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf

from tests.helpers.configs import ROOT
from tests.helpers.waiting import HANG_S
from zerosearch.core.endings import ending_in_words, report_error, sigterm_as_ctrl_c
from zerosearch.core.errors import FileError, InputError, NonFiniteError, RunError
from zerosearch.generation.vllm.errors import step_error
from zerosearch.types import SearchError

CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 11.60 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 3.05 GiB is free. If reserved but unallocated memory is large try setting ..."
)


def reported(error: Exception, caplog: pytest.LogCaptureFixture) -> tuple[str, bool]:
    """What is said of an error, and whether with its traceback."""
    caplog.clear()
    with caplog.at_level("DEBUG", logger="zerosearch.core.endings"):
        said = report_error(error)
    first, *kept = caplog.records
    shown = first.getMessage().replace("\n    ", "\n")  # as a command's log indents further lines
    assert first.levelname == "ERROR" and shown in said.replace("\n    ", "\n")
    with_traceback = first.exc_info is not None
    assert with_traceback or (kept[0].levelname == "DEBUG" and kept[0].exc_info is not None)
    return first.getMessage(), with_traceback


def raised(work: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as error:
        work()
    return error.value  # type: ignore[return-value]


def refuse(error: Exception) -> None:
    raise error


def instantiated(target: str, **arguments: Any) -> object:
    return hydra.utils.instantiate({"node": {"_target_": target, **arguments}})


REFUSE = f"{__name__}.refuse"
EMPTY = OmegaConf.create({"model": {}}, flags={"struct": True})
OF_LIBRARIES = {
    "shapes": lambda: torch.ones(2) @ torch.ones(3),
    "device-side assert": lambda: refuse(torch.AcceleratorError("CUDA error: device-side assert")),
    "nccl": lambda: refuse(dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp")),
    "gloo": lambda: refuse(dist.DistNetworkError("Connection closed by peer")),
    "out of memory": lambda: refuse(torch.OutOfMemoryError(CUDA_SAYS)),
    "vllm": lambda: refuse(step_error(RuntimeError("EngineCore encountered an issue"))),
    "value": lambda: int("x"),
    "key": lambda: {}["missing"],
    "file": Path("/nowhere").read_bytes,
    "import": lambda: refuse(ImportError("No module named 'flash_attn'")),
    "lightning": lambda: refuse(MisconfigurationException("no train_dataloader")),
    "arithmetic": lambda: refuse(FloatingPointError("underflow")),
    "in a constructor": lambda: instantiated(REFUSE, error=RuntimeError("CUDA error")),
    "a defect in a constructor": lambda: instantiated(REFUSE, error=KeyError("x")),
}
FOR_USERS = {
    "setting": lambda: refuse(InputError("seed=x: give a number")),
    "run": lambda: refuse(RunError("the server is gone: start it again")),
    "file": lambda: refuse(FileError(28, "x could not be written: free disk space")),
    "number": lambda: refuse(NonFiniteError("loss is not finite: lower the learning rate")),
    "search": lambda: refuse(SearchError("http://h:1", "connection refused; is it running?")),
    "in a constructor": lambda: instantiated(REFUSE, error=InputError("seed=x: give a number")),
    "a constructor's refusal": lambda: instantiated(REFUSE, error=ValueError("betas")),
    "no such target": lambda: instantiated("zerosearch.nowhere.Thing"),
    "a trainer": lambda: instantiated(REFUSE, error=MisconfigurationException("no GPU")),
    "a key that is not there": lambda: EMPTY.model.path,
}


@pytest.mark.parametrize("name", OF_LIBRARIES)
def test_invariant_18_errors_of_libraries_and_defects_keep_their_traceback(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = raised(OF_LIBRARIES[name])
    _, with_traceback = reported(error, caplog)
    assert with_traceback


@pytest.mark.parametrize("name", FOR_USERS)
def test_invariant_18_what_is_written_for_users_is_one_sentence(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = raised(FOR_USERS[name])
    said, with_traceback = reported(error, caplog)
    assert not with_traceback and said and "Traceback" not in said


def test_a_user_may_ask_for_all_tracebacks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert reported(InputError("seed=x: give a number"), caplog) == ("seed=x: give a number", True)


def test_the_package_raises_its_own_errors() -> None:
    """A builtin one would be shown as a defect."""
    builtin = {"ValueError", "OSError", "FloatingPointError", "Exception"}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func)
                assert name not in builtin, f"{path}:{node.lineno}: see zerosearch/core/errors.py"


def test_out_of_memory_says_which_settings_to_lower(caplog: pytest.LogCaptureFixture) -> None:
    said, with_traceback = reported(torch.OutOfMemoryError(CUDA_SAYS), caplog)
    assert with_traceback and "\n" not in said and "total capacity" not in said
    for part in (
        "Tried to allocate 11.60 GiB",
        "module.tokens_per_micro_batch",
        "module.logprob_chunk_tokens",
        "model.gradient_checkpointing=true",
        "generator.gpu_memory_utilization",
        "zerosearch plan",
    ):
        assert part in said


def test_another_rank_says_which_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report_error(InputError("seed=x: a number")) == "InputError: seed=x: a number"
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    assert report_error(InputError("no file")) == "InputError: [rank: 3] no file"


def test_an_error_is_said_without_loading_anything_heavy() -> None:
    code = (
        "import sys, zerosearch.core.endings as ends;"
        "from zerosearch.core.errors import InputError;"
        "ends.report_error(InputError('seed=x: a number'));"
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
        raise InputError("seed=x: a number")
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


def as_rust(number: int) -> Exception:
    error = RuntimeError(
        f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
    )
    error.__cause__ = ValueError("inner")
    return error


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free disk space"),
        (errno.EDQUOT, "free disk space"),
        (errno.EROFS, "paths.log_dir="),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENAMETOOLONG, "give a path that"),
    ],
)
def test_what_the_machine_lacks_is_said_whoever_stumbles_over_it(
    number: int, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = OSError(number, os.strerror(number), "/runs/a")
    for error in (plain, as_rust(number)):
        said, with_traceback = reported(error, caplog)
        assert os.strerror(number) in said and remedy in said and not with_traceback
    assert "/runs/a: " in reported(plain, caplog)[0]
    assert reported(OSError(errno.ENOENT, "No such file", "/x"), caplog)[1], "may be a defect"
