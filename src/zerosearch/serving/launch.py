"""A run's own simulators: started before it needs them, stopped when it ends."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from zerosearch.core.errors import InputError
from zerosearch.core.nodes import check_nodes
from zerosearch.serving.process import POLL_S, ServerProcess, answers
from zerosearch.serving.settings import ServerSettings
from zerosearch.simulator.checks import only_replays

# Hands the endpoints to the processes that Lightning starts for further GPUs: they run the same
# script again.
ENDPOINTS_VARIABLE = "ZEROSEARCH_SIMULATOR_ENDPOINTS"

log = logging.getLogger(__name__)


def server_settings(simulator: DictConfig) -> ServerSettings:
    """The node `simulator.server`.

    Raises:
        InputError: this simulator needs no server.
    """
    if "server" not in simulator:
        raise InputError(
            "simulator: this one has no server (no node simulator.server); choose one of "
            "configs/simulator/ that has, such as simulator=prompted_7b or simulator=tiny"
        )
    check_nodes(simulator, "server")
    settings = hydra.utils.instantiate(simulator.server, _convert_="all")
    assert isinstance(settings, ServerSettings)
    return settings


@contextmanager
def running(settings: ServerSettings, folder: Path | None) -> Iterator[list[ServerProcess]]:
    """Start every server of a simulator, wait until all answer, stop them at the end.

    Args:
        settings: what to run.
        folder: takes `simulator-<n>.log`; None: the output goes where this process's goes.

    Raises:
        InputError: a server cannot be started or does not come up; the others are stopped.
    """
    servers = [
        ServerProcess(command, settings.served_name, folder and folder / f"simulator-{number}.log")
        for number, command in enumerate(settings.commands())
    ]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_until_ready(settings.ready_timeout_s)
        yield servers
    finally:
        for server in servers:
            server.begin_stop()
        for server in servers:
            server.stop()


@contextmanager
def launched(cfg: DictConfig, folder: Path) -> Iterator[list[str]]:
    """With `simulator.launch`, serve the simulator inside and set `simulator.endpoints` to it.

    Of several processes on a machine the first launches; the others take over its endpoints. A
    replay asks no simulator, so none is launched for it.

    Args:
        cfg: the whole configuration. A node `simulator` without `launch` (a scripted one) needs
            no server.
        folder: takes the servers' output.

    Yields:
        The endpoints, also where nothing is launched.

    Raises:
        InputError: vLLM is missing, a port is taken, or a server does not come up.
    """
    simulator = cfg.get("simulator") or OmegaConf.create()
    launch = simulator.get("launch", False)
    if launch and only_replays(cfg):  # or another engine answers
        log.info("simulator.launch=true: nothing is launched, since no search asks the simulator")
        launch = False
    if not launch:
        yield list(simulator.get("endpoints", []))
        return
    settings = server_settings(simulator)
    _check_no_other_endpoints(list(simulator.get("endpoints", [])), settings)
    if _local_rank() > 0:
        shared = os.environ.get(ENDPOINTS_VARIABLE)
        simulator.endpoints = shared.split(",") if shared else settings.endpoints()
        _await_others_servers(list(simulator.endpoints), settings.ready_timeout_s)
        yield list(simulator.endpoints)
        return
    with running(settings, folder) as servers:
        simulator.endpoints = [server.command.endpoint for server in servers]
        os.environ[ENDPOINTS_VARIABLE] = ",".join(simulator.endpoints)
        try:
            yield list(simulator.endpoints)
        finally:
            del os.environ[ENDPOINTS_VARIABLE]


def _check_no_other_endpoints(given: list[str], settings: ServerSettings) -> None:
    """Raise where servers are named that a launch would put others in the place of."""
    own = [] if settings.port is None else settings.endpoints()
    if others := [endpoint for endpoint in given if endpoint not in own]:
        raise InputError(
            f"simulator.launch=true starts a server of its own, and simulator.endpoints names "
            f"{', '.join(others)}: set simulator.launch=false to ask that one, or "
            "simulator.endpoints=[]"
        )


def _local_rank() -> int:
    """This process's number on this machine, as torchrun, Lightning or SLURM count."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def _await_others_servers(endpoints: list[str], timeout_s: float) -> None:
    started = time.monotonic()
    for endpoint in endpoints:
        while not answers(endpoint):
            if time.monotonic() - started > timeout_s:
                raise InputError(
                    f"the simulator at {endpoint}, which the first process of this machine "
                    f"launches, did not answer within {timeout_s:.3g} s: see the log of that one"
                )
            time.sleep(POLL_S)
