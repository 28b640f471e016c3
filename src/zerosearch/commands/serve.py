"""Serve a policy until Ctrl-C: `zerosearch serve checkpoint=RUN search=bm25`."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
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
from zerosearch.serving.http import (
    BACKLOG,
    bind,
    exit_on_signals,
    known_hosts,
    needed_key,
    run_app,
    shown_address,
)
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
    "allow_anyone": FLAG,
}

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
    with ExitStack() as stack:
        bound = stack.enter_context(bind(cfg.host, cfg.port))
        key = needed_key(bound, cfg.api_key_env, allow_anyone=cfg.allow_anyone)
        subject = stack.enter_context(loaded(cfg, overrides))  # which may take minutes
        asyncio.run(subject.check())
        app = make_app(
            subject,
            limits,
            name=cfg.name,
            formatter=cfg.episode.formatter,
            key=key,
            hosts=known_hosts(bound),
        )
        bound.listen(BACKLOG)  # whoever reads the next line may connect
        log.info("serving %s: base_url=http://%s/v1", cfg.name, shown_address(bound))
        run_app(app, bound, limits)


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
