"""What a configuration says of its simulator, checked before anything heavy is imported.

A simulator that was chosen and that nobody asks, or that cannot answer, ends a command within a
second or two, with one sentence.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from omegaconf import ListConfig, OmegaConf

from zerosearch.clients.http_pool import proxy_for
from zerosearch.core.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

ASKS = "${simulator.engine}"  # of an engine that the simulator plays
CONNECT_S = 2.0  # a server that is up accepts connections at once
_KEYS = ("simulator", "endpoints")


def check_simulator(cfg: DictConfig) -> None:
    """Check the simulator of a command, with the choices that Hydra made.

    Raises:
        InputError: says what is wrong, and what to do.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    choices, overrides = hydra.runtime.choices, list(hydra.overrides.task)
    check_choice(cfg, choices, overrides)
    if not only_replays(cfg):
        check_served(cfg.simulator, str(choices["simulator"]))


def is_asked(cfg: DictConfig) -> bool:
    """Whether any engine of a configuration is played by its simulator."""
    return bool(askers(cfg))


def askers(cfg: DictConfig) -> list[DictConfig]:
    """The `search` nodes, wherever they stand, whose engine is the simulator's."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    return [OmegaConf.select(cfg, place) for place in _places(plain)]


def only_replays(cfg: DictConfig) -> bool:
    """Whether every search that could ask the simulator, if any, repeats recorded answers."""
    return all(each.get("cache") == "replay" for each in askers(cfg))


def check_choice(cfg: DictConfig, choices: Any, overrides: Sequence[str]) -> None:
    """A simulator that was chosen has to be the one that plays.

    Args:
        cfg: the composed configuration.
        choices: by group, as Hydra made them.
        overrides: of the command line.

    Raises:
        InputError: another engine answers in its place.
    """
    name, search = choices.get("simulator"), choices.get("search")
    if is_asked(cfg):
        if cfg.get("simulator") is None:
            raise InputError(
                f"search={search} is played by a simulator, and none is chosen: add simulator=NAME"
            )
        return
    given = [item for item in overrides if item.split("=")[0].lstrip("+").split(".")[0] in _KEYS]
    is_model = "client" in (cfg.get("simulator") or {})
    if not given or (search == "scripted" and not is_model):
        return
    raise InputError(
        f"{given[0]}: search={search} answers the queries, and nobody asks the simulator {name}: "
        "add search=simulated, or leave the simulator out"
    )


def check_served(simulator: DictConfig, name: str) -> None:
    """A simulator that is a language model has a prompt, and servers that can be reached.

    Args:
        simulator: the node.
        name: its choice.

    Raises:
        InputError: what is missing, with the command that makes it.
    """
    if "client" not in simulator:  # a scripted one
        return
    for key in sorted(OmegaConf.missing_keys(simulator)):
        raise InputError(f"simulator={name} needs simulator.{key}: give it")
    _check_prompt(simulator, name)
    if "endpoints" not in simulator:
        return
    endpoints = simulator.endpoints
    if not isinstance(endpoints, ListConfig) or not all(isinstance(url, str) for url in endpoints):
        raise InputError(
            f"simulator.endpoints={endpoints}: give a list, such as [URL] or [URL,URL]"
        )
    if simulator.launch not in (True, False):
        raise InputError(f"simulator.launch={simulator.launch}: give true or false")
    if simulator.launch:
        return
    if not endpoints:
        keys = "simulator.endpoints=[URL]"
        if OmegaConf.select(simulator._get_root(), f"endpoints.{name}") is not None:
            keys += f" or endpoints.{name}=[URL]"
        raise InputError(
            f"simulator.endpoints is empty: start a server with `zerosearch simulate "
            f"simulator={name}` and give {keys}, or let the run start it with simulator.launch=true"
        )
    with ThreadPoolExecutor(len(endpoints)) as threads:  # one that never answers holds up no other
        reasons = list(threads.map(_unreachable, endpoints))
    failed = [f"{url} ({why})" for url, why in zip(endpoints, reasons, strict=True) if why]
    if failed:
        what = ", ".join(failed)
        raise InputError(
            f"simulator.endpoints: no simulator answers at {what}: start it with "
            f"`zerosearch simulate simulator={name}` (or `vllm serve {simulator.model}`), or "
            "correct the address"
        )


def _check_prompt(simulator: DictConfig, name: str) -> None:
    from zerosearch.simulator.prompt import SimulatorPrompt

    try:
        SimulatorPrompt(str(simulator.prompt_template), simulator.words_per_document)
    except InputError as error:
        if not simulator.made_by or "is no file" not in str(error):
            raise
        where = " in a checkout" if simulator.made_by.startswith("make ") else ""
        raise InputError(
            f"simulator={name}: {simulator.prompt_template} is not there, and this simulator only "
            f"works with it; `{simulator.made_by}` makes it{where}"
        ) from error


def _unreachable(endpoint: str) -> str | None:
    """Why nothing accepts connections there; None where something does, or a proxy is asked."""
    try:
        address = urlsplit(endpoint)
        if address.scheme not in ("http", "https") or not address.hostname:
            return "no URL: give http://HOST:PORT/v1"
        if proxy_for(endpoint):
            return None
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        return f"connection failed: {error}"
    return None


def _places(node: Any, place: str = "") -> list[str]:
    """Dotted places of the nodes whose key `engine` is the simulator's."""
    if not isinstance(node, dict):
        return []
    own = [place] if node.get("engine") == ASKS else []
    below = (_places(value, f"{place}.{key}" if place else str(key)) for key, value in node.items())
    return [*own, *(each for found in below for each in found)]
