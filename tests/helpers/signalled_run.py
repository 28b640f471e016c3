"""Two runs in a process of their own, for a test that sends it signals: `signalled_run.py FOLDER`.

In its third policy step each run makes the file `waiting` and goes on when there is `signalled`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.callbacks.graceful_stop import GracefulStop
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint


def run(folder: Path) -> None:
    def wait_for_signal(step: int) -> None:
        if step == 2:
            (folder / "waiting").touch()
            while not (folder / "signalled").exists():
                time.sleep(0.01)

    stop = GracefulStop()
    callbacks = [stop, PolicyCheckpoint(folder / "checkpoints", 2)]
    make_trainer(50, callbacks=callbacks, val_every=None).fit(PolicyStub(50, wait_for_signal))
    (folder / "exit_code").write_text(str(stop.exit_code))


if __name__ == "__main__":
    run(Path(sys.argv[1]) / "once")
    run(Path(sys.argv[1]) / "twice")
