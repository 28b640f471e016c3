"""How the threads that compute wait for one another.

Light on imports: this must be settled before torch is loaded, which starts them.
"""

from __future__ import annotations

import os


def wait_without_spinning() -> None:
    """Let a thread that has nothing to compute sleep until there is something.

    OpenMP's default is to spin for milliseconds. Beside another busy program the spinning threads
    hold the processor that the late one needs, and everything takes several times as long; on a
    machine that has nothing else to do, sleeping costs nothing that can be measured
    (`benchmarks/bench_threads.py`). No figure depends on it.

    GNU's OpenMP, which torch's Linux builds bring along, LLVM's and Intel's all read this variable
    when they are loaded. What the user has set wins, also the runtimes' own `GOMP_SPINCOUNT` and
    `KMP_BLOCKTIME`. Processes started from here inherit it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
