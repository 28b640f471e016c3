"""What a run needs of memory and time: `zerosearch plan experiment=NAME card=h100`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zerosearch.command_line.command import command
from zerosearch.command_line.keys import COUNT_OR_NULL, Key
from zerosearch.command_line.made_for import command_of, experiments
from zerosearch.core import ranges
from zerosearch.core.endings import ending_in_words
from zerosearch.core.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig


COMPONENTS = ("data", "module", "callbacks", "logger", "trainer", "speeds")


def choose_command(arguments: list[str]) -> list[str]:
    """Plan the command that the experiment is of."""
    tunes = any(command_of(name) == "tune" for name in experiments(arguments))
    return ["planned=tune", *arguments] if tunes else arguments


def _check_card(cfg: DictConfig) -> None:
    if cfg.card is not None and cfg.card not in cfg.speeds.cards:
        raise InputError(
            f"card={cfg.card}: choose one of {', '.join(cfg.speeds.cards)}, or describe it: "
            f"+speeds.cards.{cfg.card}={{flop_s: , memory_bytes_s: , link_bytes_s: , gib: }}"
        )


@command(
    keys={
        "card": Key(str | None, "a text, or null"),
        "gpu_gib": Key(ranges.Positive | None, "a number above 0, or null for the card's"),
        "simulator_gpus": COUNT_OR_NULL,
        "sampler_gpus": COUNT_OR_NULL,
    },
    checks=[_check_card],
    expand=[choose_command],
)
def main(cfg: DictConfig) -> None:
    """Print both plans; exit code 1 where the run does not fit."""
    from zerosearch.core.nodes import check_nodes
    from zerosearch.planning.fitting import process_bytes, with_fitting_batches
    from zerosearch.planning.memory import memory_rows
    from zerosearch.planning.memory_table import GIB, check_fits
    from zerosearch.planning.printing import print_memory, print_times
    from zerosearch.planning.reading import card_of, plan_of
    from zerosearch.planning.time import times_of
    from zerosearch.planning.work import work_of

    on_cpu = cfg.trainer.accelerator == "cpu"
    card = card_of(cfg)
    gpu_bytes = int((cfg.gpu_gib or cfg.speeds.cards[card].gib) * GIB)
    with ending_in_words():
        check_nodes(cfg, *COMPONENTS)
        if on_cpu and cfg.gpu_gib is None:
            gpu_bytes = process_bytes(cfg.trainer)
        plan = plan_of(cfg)
        if cfg.module.tokens_per_micro_batch is None:
            plan = with_fitting_batches(plan, gpu_bytes // 2 if on_cpu else gpu_bytes)
        rows = memory_rows(plan, gpu_bytes)
        print_memory(plan, rows, gpu_bytes)
        if cfg.get("algorithm") is not None:  # tuning plays no episodes
            kv_cache = sum(row.sampling for row in rows if row.name.startswith("vLLM: KV"))
            print_times(times_of(work_of(cfg, plan, kv_cache)), card, cfg.episode.top_k)
        check_fits(rows, gpu_bytes, on_cpu=on_cpu)
