"""Whether the servers of a simulator can be reached, as far as that is known at once."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.configs import compose_config
from tests.helpers.openai_server import free_port
from zerosearch.simulator.checks import check_served


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def port() -> Iterator[int]:
    """Where something accepts connections, by IPv4 and by IPv6."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        yield server.getsockname()[1]


def check(folder: Path, endpoints: str) -> None:
    overrides = ["simulator=prompted_3b", f"simulator.endpoints={endpoints}"]
    check_served(compose_config(folder, *overrides).simulator, "prompted_3b")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_servers_are_found_by_name_and_by_address(port: int, tmp_path: Path) -> None:
    check(
        tmp_path,
        f"['http://localhost:{port}/v1','http://127.0.0.1:{port}','http://[::1]:{port}/v1']",
    )


@pytest.mark.parametrize(
    ("endpoints", "said"),
    [
        ("['localhost:8000']", r"localhost:8000 \(no URL: give http://HOST:PORT/v1\)"),
        ("['http://[::1']", r"http://\[::1 \(connection failed: "),
        ("['http://h:high/v1']", r"http://h:high/v1 \(connection failed: "),
        ("'http://h/v1'", r"simulator.endpoints=http://h/v1: give a list, such as \[URL\]"),
    ],
)
def test_what_is_no_server_is_named(endpoints: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        check(tmp_path, endpoints)


def test_servers_are_looked_for_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def slow(address: tuple[str, int], timeout: float) -> None:
        time.sleep(1)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", slow)
    urls = [f"http://h{number}/v1" for number in range(8)]
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"http://h0/v1 \(.*timed out\), http://h1.*http://h7"):
        check(tmp_path, str(urls))
    assert time.monotonic() - started < 6, "not one after the other"


def test_a_server_behind_a_proxy_is_left_to_the_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    check(tmp_path, "['https://no-such-host.invalid/v1']")
    with pytest.raises(ValueError, match="connection failed"):
        check(tmp_path, f"['http://127.0.0.1:{free_port()}/v1']")
