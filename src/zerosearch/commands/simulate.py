"""Serve a simulator until Ctrl-C: `zerosearch simulate simulator=tuned_7b`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zerosearch.command_line.arguments import expand_simulator
from zerosearch.command_line.command import command
from zerosearch.core.endings import ending_in_words

if TYPE_CHECKING:
    from omegaconf import DictConfig


@command(keys={}, expand=[expand_simulator])
def main(cfg: DictConfig) -> None:
    """Serve one simulator."""
    from zerosearch.serving.foreground import serve_until_told
    from zerosearch.serving.launch import server_settings

    with ending_in_words():
        serve_until_told(server_settings(cfg.simulator), "simulator.endpoints")
