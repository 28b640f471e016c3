"""Serve a policy to `generator=vllm_server`: `zerosearch generate model=NAME`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from zerosearch.command_line.command import command
from zerosearch.command_line.made_for import check_choices
from zerosearch.core.endings import ending_in_words


@command(keys={}, checks=[check_choices])
def main(cfg: DictConfig) -> None:
    """Serve one policy; its weights come with the first sync of the run that trains it."""
    from zerosearch.core.nodes import check_nodes
    from zerosearch.serving.foreground import serve_until_told

    with ending_in_words():
        check_nodes(cfg, "server")
        settings = hydra.utils.instantiate(cfg.server, _convert_="all")
        serve_until_told(settings, "generator=vllm_server generator.endpoints")
