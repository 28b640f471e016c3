"""What libraries print within a run, and need not."""

from __future__ import annotations

import logging
import warnings

import datasets

from zerosearch.core.hub import show_downloads_alone


def quiet_libraries() -> None:
    """Keep libraries from saying things twice, or things that hold of every run here."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # Hydra's handlers print their messages
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    show_downloads_alone()
    datasets.disable_progress_bars()
    # the reference policy is in eval mode on purpose
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
    # a rank whose share of an evaluation is empty; the metric is computed over all ranks
    warnings.filterwarnings("ignore", message=r"The ``compute`` method of metric AnswerMetrics")
    # beside vLLM, which starts torch.distributed in a run of one process
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\('(f1|loss)'")
    warnings.filterwarnings("ignore", message=r"The '\w+_dataloader' does not have many workers")
