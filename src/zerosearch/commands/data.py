"""Fetch public data: `zerosearch data name=hotpotqa_small`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import hydra

from zerosearch.command_line.command import command
from zerosearch.command_line.keys import TEXT
from zerosearch.core.endings import ending_in_words
from zerosearch.core.errors import InputError
from zerosearch.core.files import GIB
from zerosearch.data.download import AGAIN, make, size_of, whole

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from zerosearch.data.public_sets import PublicSet

log = logging.getLogger(__name__)


def check_name(cfg: DictConfig) -> None:
    """Raise an InputError where `cfg.name` is none of the sets."""
    if cfg.get("name") not in cfg.sets:
        raise InputError(f"name={cfg.get('name')}: choose one of {', '.join(cfg.sets)}")


def fetch(cfg: DictConfig) -> None:
    """Fetch the set of `cfg.name` if it is not there, and say where it lies and what it is for.

    Raises:
        InputError: it cannot be had, is damaged, or cannot be written; says what to do.
    """
    public: PublicSet = hydra.utils.instantiate(cfg.sets[cfg.name], _convert_="all")
    target = Path(cfg.folder).expanduser().absolute() / cfg.name
    said = "is there"
    if (facts := whole(target)) is None:
        try:
            facts = make(public, target)
        except OSError as error:
            raise InputError(
                f"{target} cannot be written ({error.strerror or error}): free disk space, or give "
                "another place with folder=FOLDER"
            ) from error
        said = "fetched and checked"
    log.info("%s: %s, %.3f GiB in %s", cfg.name, said, size_of(facts) / GIB, target)
    for name, file in facts["files"].items():
        log.info("  %s: %s rows, %s bytes", name, f"{file['rows']:,}", f"{file['bytes']:,}")
    default = Path(cfg.paths.data_dir).expanduser().absolute()
    elsewhere = "" if target.parent == default else f"ZEROSEARCH_DATA={target.parent} "
    log.info("use it with: %s%s", elsewhere, public.use)


@command(keys={"folder": TEXT}, checks=[check_name])
def main(cfg: DictConfig) -> None:
    """Fetch one set."""
    with ending_in_words(AGAIN):
        fetch(cfg)
