"""Serve a search engine over HTTP until Ctrl-C: `zerosearch retrieve search=bm25`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import OmegaConf

from zerosearch.command_line.command import command
from zerosearch.command_line.keys import FLAG, PLACE, PORT, TEXT
from zerosearch.core.endings import ending_in_words
from zerosearch.core.errors import InputError
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

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

COMPONENTS = ("limits", "search.engine")
_NO_CORPUS = "search: a {} has no corpus that could be served; give search=bm25 or search=dense"


def serve(cfg: DictConfig) -> None:
    """Bind, prepare the engine, answer until told to stop."""
    from zerosearch.core.nodes import check_nodes

    if OmegaConf.is_interpolation(cfg.search, "engine"):  # that of a simulator
        raise InputError(_NO_CORPUS.format("simulator"))
    exit_on_signals()
    make_app = _import_server()
    check_nodes(cfg, *COMPONENTS)
    limits = hydra.utils.instantiate(cfg.limits)
    with bind(cfg.host, cfg.port) as bound:  # before the corpus is read, which may take minutes
        key = needed_key(bound, cfg.api_key_env, allow_anyone=cfg.allow_anyone)
        engine = prepared_engine(cfg.search.engine)
        bound.listen(BACKLOG)  # whoever reads the next lines may connect
        log.info("serving %s over %d passages", engine.name, engine.passage_count)
        url = f"http://{shown_address(bound)}"
        log.info("ask it with: search=retriever search.engine.url=%s", url)
        run_app(make_app(engine, limits, key=key, hosts=known_hosts(bound)), bound, limits)


def prepared_engine(node: DictConfig) -> Any:
    """The engine of a `search.engine` node, its corpus read and its index ready.

    Raises:
        InputError: it is no engine over a corpus, or its corpus, index or model is bad.
    """
    from zerosearch.search.retrieval import Retriever

    engine = hydra.utils.instantiate(node)
    if not isinstance(engine, Retriever):
        raise InputError(_NO_CORPUS.format(type(engine).__name__))
    engine.prepare()
    return engine


def _import_server() -> Any:
    try:
        from zerosearch.serving.retriever_app import make_app
    except ImportError as error:
        raise InputError(
            f"the server needs packages that are not installed ({error}): "
            "pip install 'zerosearch[retriever]'"
        ) from error
    return make_app


KEYS = {"host": TEXT, "port": PORT, "api_key_env": PLACE, "allow_anyone": FLAG}


@command(keys=KEYS, checks=[check_data])
def main(cfg: DictConfig) -> None:
    """Serve one engine."""
    with ending_in_words():
        serve(cfg)
