"""Serve a search engine over HTTP until Ctrl-C: `python -m zerosearch.retriever search=bm25`."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import hydra

from zerosearch.runs import PROJECT_ROOT, report_error

if TYPE_CHECKING:
    from omegaconf import DictConfig

BACKLOG = 2048  # connections that wait to be accepted

log = logging.getLogger(__name__)
os.environ.setdefault("PROJECT_ROOT", str(PROJECT_ROOT))


def serve(cfg: DictConfig) -> None:
    """Bind, prepare the engine, answer until told to stop."""
    _exit_on_signals()
    uvicorn, make_app = _import_server()
    limits = hydra.utils.instantiate(cfg.limits)
    with bind(cfg.host, cfg.port) as bound:  # before the corpus is read, which may take minutes
        engine = prepared_engine(cfg.search.engine)
        bound.listen(BACKLOG)  # whoever reads the next lines may connect
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        log.info("serving %s over %d passages", engine.name, engine.passage_count)
        log.info("ask it with: search=retriever search.engine.url=http://%s:%d", shown, port)
        config = uvicorn.Config(
            make_app(engine, limits),
            log_config=None,  # Hydra's handlers print its messages
            log_level="warning",
            access_log=False,
            backlog=BACKLOG,
            timeout_keep_alive=30,  # a client that reuses a connection must not find it closed
            timeout_graceful_shutdown=10,
        )
        uvicorn.Server(config).run(sockets=[bound])


def prepared_engine(node: DictConfig) -> Any:
    """The engine of a `search.engine` node, its corpus read and its index ready.

    Raises:
        ValueError: it is no engine over a corpus, or its corpus, index or model is bad.
    """
    from zerosearch.search.retrieval import Retriever

    engine = hydra.utils.instantiate(node)
    if not isinstance(engine, Retriever):
        raise ValueError(
            f"search: a {type(engine).__name__} has no corpus that could be served; "
            "give search=bm25 or search=dense"
        )
    engine.prepare()
    return engine


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not yet listening: nobody connects before all is ready.

    Args:
        host: name or address of this machine.
        port: 0 lets the system choose.

    Raises:
        ValueError: the address is not free, or not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        # With the protocol named asyncio sends replies at once; else each waits for 40 ms.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        mend = "stop what runs there, or give another port="
        if getattr(error, "errno", None) != errno.EADDRINUSE:
            mend = "give a host= of this machine and a port= from 1024 to 65535"
        raise ValueError(f"host={host} port={port}: {error}; {mend}") from error
    return bound


def _import_server() -> tuple[Any, Any]:
    try:
        import uvicorn

        from zerosearch.search.retriever_app import make_app
    except ImportError as error:
        raise ValueError(
            f"the server needs packages that are not installed ({error}): "
            "pip install 'zerosearch[retriever]'"
        ) from error
    return uvicorn, make_app


def _exit_on_signals() -> None:
    # uvicorn ends its work first and then raises the signal again: being told to stop is no error.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))


@hydra.main(version_base="1.3", config_path=str(PROJECT_ROOT / "configs"), config_name="retriever")
def main(cfg: DictConfig) -> None:
    """Serve one engine."""
    try:
        serve(cfg)
    except Exception as error:
        report_error(error)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
