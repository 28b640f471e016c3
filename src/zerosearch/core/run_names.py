"""The name of a new run's folder, the same in every process of the run.

Processes that are started from outside (srun, torchrun) each compose the configuration for
themselves, and their clocks differ. Lightning's own processes are told the folder by Lightning.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta

from omegaconf import OmegaConf

INTERACTIVE_JOBS = ("bash", "interactive")  # whose tasks Lightning does not take for ranks, either
TIMEOUT = timedelta(minutes=5)


def run_name() -> str:
    """Name of the run that this process belongs to.

    A task of a SLURM job is named after job and step, which it keeps when the job is requeued; a
    process of torchrun after the time at which the first of them asked, also when they are
    restarted; any other one after the time.
    """
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    if "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE_JOBS:
        return f"slurm-{os.environ['SLURM_JOB_ID']}-{os.environ['SLURM_STEP_ID']}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _first_of_torchrun(now)
    return now


def _first_of_torchrun(value: str) -> str:
    """The value of the first process that asks, through the store of torchrun's agents."""
    from torch.distributed import TCPStore

    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=TIMEOUT
    )
    key = f"zerosearch/run_name/{os.environ['TORCHELASTIC_RUN_ID']}"
    return store.compare_set(key, "", value).decode()


def register() -> None:
    """Let configurations write `${run_name:}`."""
    OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)
