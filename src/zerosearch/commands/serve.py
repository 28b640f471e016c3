"""Serve a policy until Ctrl-C: `zerosearch serve checkpoint=RUN search=bm25`."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig

from zerosearch.command_line.arguments import expand_simulator
from zerosearch.command_line.chosen_policy import choose_policy
from zerosearch.command_line.command import command
from zerosearch.command_line.keys import FLAG, NOT_NEGATIVE, PLACE, PORT, SEED, TEXT
from zerosearch.core.endings import ending_in_words
from zerosearch.core.errors import InputError
from zerosearch.core.imports import quick_imports
from zerosearch.data.availability import check_data
from zerosearch.serving.http import BACKLOG, bind, exit_on_signals, run_app, shown_address
from zerosearch.simulator.checks import check_simulator

if TYPE_CHECKING:
    from omegaconf import DictConfig

KEYS = {
    "seed": SEED,
    "checkpoint": PLACE,
    "allow_other_episode": FLAG,
    "temperature": NOT_NEGATIVE,
    "name": TEXT,
    "host": TEXT,
    "port": PORT,
    "api_key_env": PLACE,
}
LOOPBACK = ("127.0.0.1", "::1", "localhost")

log = logging.getLogger(__name__)


def serve(cfg: DictConfig) -> None:
    """Bind, load the policy, answer until told to stop."""
    overrides = list(HydraConfig.get().overrides.task)
    choose_policy(cfg, overrides)

    with quick_imports():
        from zerosearch.answering.load import loaded
        from zerosearch.core.nodes import check_nodes

    exit_on_signals()
    make_app = _import_app()
    check_nodes(cfg, "limits")
    limits = hydra.utils.instantiate(cfg.limits)
    key = _key(cfg)
    with (
        bind(cfg.host, cfg.port) as bound,  # before a model is loaded, which may take minutes
        loaded(cfg, overrides) as subject,
    ):
        asyncio.run(subject.check())
        app = make_app(subject, limits, name=cfg.name, formatter=cfg.episode.formatter, key=key)
        bound.listen(BACKLOG)  # whoever reads the next line may connect
        log.info("serving %s: base_url=http://%s/v1", cfg.name, shown_address(bound))
        run_app(app, bound)


def _key(cfg: DictConfig) -> str | None:
    """The key that clients must send, from the environment.

    Raises:
        InputError: the variable is not set.
    """
    if cfg.api_key_env is None:
        if cfg.host not in LOOPBACK:
            log.warning("host=%s: everybody on the network may ask; set api_key_env=NAME", cfg.host)
        return None
    key = os.environ.get(cfg.api_key_env)
    if not key:
        raise InputError(
            f"api_key_env={cfg.api_key_env}: this environment variable is not set; put the key "
            "that clients are to send into it"
        )
    return key


def _import_app() -> Any:
    try:
        from zerosearch.answering.app import make_app
    except ImportError as error:
        raise InputError(
            f"the server needs packages that are not installed ({error}): "
            "pip install 'zerosearch[serve]'"
        ) from error
    return make_app


@command(keys=KEYS, checks=[check_simulator, check_data], expand=[expand_simulator])
def main(cfg: DictConfig) -> None:
    """Serve one policy."""
    with ending_in_words():
        serve(cfg)
