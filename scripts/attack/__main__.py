"""Attack the program as somebody would who means it harm, and count what that does.

Run:  make attack                                     all of it, in less than half an hour
      python -m scripts.attack kills disks            some families alone; the page stays as it is
      python -m scripts.attack replies --share 0.1    a tenth of it
      python -m scripts.attack fuzz --minutes 60      damaged files for an hour

All on this machine, over loopback. The exit code is 1 where anything was lost or run. Light on
imports: each command that is attacked loads this module again.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

# Of each family, the argument of its `attack` that says how much, and how much is all of it.
FAMILIES: dict[str, tuple[str, int] | None] = {
    "kills": ("kills", 20),
    "disks": ("full", 8),
    "descriptors": ("connections", 1024),
    "writers": ("rows", 300),
    "growth": ("steps", 300),
    "replies": ("replies", 130),
    "requests": ("requests", 2000),
    "files": None,
    "fuzz": ("examples", 20),
}
BOUND_S = 1800
NAMESPACE = "ZEROSEARCH_ATTACK_NAMESPACE"  # set within


def enter_namespace() -> None:
    """Start again where file systems can be mounted, if this machine lets us."""
    from scripts.attack.disks import NAMESPACE as UNSHARE

    if NAMESPACE in os.environ:
        return
    os.environ[NAMESPACE] = "1"
    try:
        allowed = subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    except OSError:
        return
    if allowed:
        sys.stdout.flush()
        words = [*UNSHARE, sys.executable, "-m", "scripts.attack", *sys.argv[1:]]
        os.execvp(words[0], words)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; none: all")
    parser.add_argument("--share", type=float, default=1.0, help="of the attempts, above 0")
    parser.add_argument("--minutes", type=float, default=0.0, help="of the family fuzz")
    parser.add_argument("--out", type=Path, help="the page that gets the table")
    args = parser.parse_args()
    if unknown := sorted({*args.families} - {*FAMILIES}):
        parser.error(f"there is no family {', '.join(unknown)}: choose of {', '.join(FAMILIES)}")
    names = args.families or list(FAMILIES)
    if "disks" in names:
        enter_namespace()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("the attack took longer than it may"))
    signal.alarm(BOUND_S + int(60 * args.minutes))

    families = {name: import_module(f"scripts.attack.{name}") for name in names}
    from scripts.attack.page import has_failed, shown, table, write
    from scripts.attack.tally import watched

    tallies = []
    for name, family in families.items():
        print(f"== {name}", flush=True)
        amount = FAMILIES[name]
        options = {} if amount is None else {amount[0]: max(2, round(args.share * amount[1]))}
        if name == "fuzz":
            options["minutes"] = args.minutes
        with tempfile.TemporaryDirectory() as folder:
            tallies.append(watched(lambda: family.attack(Path(folder), **options)))  # noqa: B023
        print(shown(tallies[-1]), flush=True)
    print(table(tallies))
    if args.out:
        write(args.out, tallies)
    return int(has_failed(tallies))


if __name__ == "__main__":
    sys.exit(main())
