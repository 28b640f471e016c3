"""A stand-in for SLURM's srun on one machine: starts SLURM_NTASKS processes, waits for all of them.

Each process id is appended to the file FAKE_SRUN_PIDS names; the exit code is the highest of all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

command = [part for part in sys.argv[1:] if not part.startswith("--")]
tasks = []
for rank in range(int(os.environ["SLURM_NTASKS"])):
    place = {"PROCID": rank, "LOCALID": rank, "NODEID": 0, "STEP_ID": 0}
    environment = os.environ | {f"SLURM_{name}": str(value) for name, value in place.items()}
    tasks.append(subprocess.Popen(command, env=environment))
with Path(os.environ["FAKE_SRUN_PIDS"]).open("a") as file:
    file.writelines(f"{task.pid}\n" for task in tasks)
sys.exit(max(task.wait() for task in tasks))
