"""Composing the configuration as the command line does, without changing to a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from zerosearch.command_line.made_for import check_made_for

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


def compose_config(
    output_dir: Path, *overrides: str, whole: bool = False, name: str = "train"
) -> DictConfig:
    """The configuration of `zerosearch NAME OVERRIDES`.

    Args:
        output_dir: the run's folder.
        overrides: as on the command line.
        whole: with Hydra's own node.
        name: of the command.
    """
    os.environ.setdefault("PROJECT_ROOT", str(ROOT))
    paths = [f"paths.output_dir='{output_dir}'", f"paths.log_dir='{output_dir}'"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(name, overrides=[*paths, *overrides], return_hydra_config=whole)
    OmegaConf.set_struct(cfg, True)
    return cfg


def checked(folder: Path, *overrides: str, name: str = "train") -> DictConfig:
    """The configuration of a training run, after the check that its choices go together."""
    cfg = compose_config(folder, *overrides, whole=True, name=name)
    choices = cfg.hydra.runtime.choices
    with open_dict(cfg):
        del cfg["hydra"]
    check_made_for(cfg, choices)
    return cfg


@contextmanager
def hydra_run(cfg: DictConfig) -> Iterator[DictConfig]:
    """Within, Hydra knows of a run with this configuration, composed `whole`."""
    HydraConfig.instance().set_config(cfg)
    try:
        with open_dict(cfg):
            del cfg["hydra"]
        yield cfg
    finally:
        HydraConfig.instance().cfg = None
