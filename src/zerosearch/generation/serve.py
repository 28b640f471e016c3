"""Serve a policy to `generator=vllm_server`: `python -m zerosearch.generation.serve model=NAME`."""

from __future__ import annotations

import os

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from zerosearch.endings import ending_in_words
from zerosearch.made_for import check_made_for
from zerosearch.runs import PROJECT_ROOT
from zerosearch.simulator.serve import serve_until_told

os.environ.setdefault("PROJECT_ROOT", str(PROJECT_ROOT))


@hydra.main(
    version_base="1.3", config_path=str(PROJECT_ROOT / "configs"), config_name="serve_generator"
)
def main(cfg: DictConfig) -> None:
    """Serve one policy; its weights come with the first sync of the run that trains it."""
    with ending_in_words():
        check_made_for(cfg, HydraConfig.get().runtime.choices)
        settings = hydra.utils.instantiate(cfg.server, _convert_="all")
        serve_until_told(settings, "generator=vllm_server generator.endpoints")


if __name__ == "__main__":
    main()
