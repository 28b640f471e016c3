"""Serve a policy to `generator=vllm_server`: `python -m zerosearch.commands.generate model=NAME`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from zerosearch.command_line.command import command
from zerosearch.command_line.made_for import check_choices
from zerosearch.commands.simulate import serve_until_told
from zerosearch.core.endings import ending_in_words


@command("generate", keys={}, checks=[check_choices])
def main(cfg: DictConfig) -> None:
    """Serve one policy; its weights come with the first sync of the run that trains it."""
    from zerosearch.core.nodes import check_nodes

    with ending_in_words():
        check_nodes(cfg, "server")
        settings = hydra.utils.instantiate(cfg.server, _convert_="all")
        serve_until_told(settings, "generator=vllm_server generator.endpoints")


if __name__ == "__main__":
    main()
