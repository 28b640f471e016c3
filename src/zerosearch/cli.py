"""The command `zerosearch`, also `python -m zerosearch`: NAME runs `zerosearch/commands/NAME.py`.

Light on imports: help and a wrong name are answered before anything else is loaded.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from zerosearch.core.renamed import COMMANDS as FORMER

COMMANDS: dict[str, dict[str, str]] = {  # what each does, in groups
    "train": {
        "train": "train a policy: experiment=NAME",
        "plan": "what memory and time a run needs: experiment=NAME",
        "data": "fetch public data: name=nq_hotpotqa",
        "report": "a page about runs, with curves and trajectories: RUN",
        "export": "turn a checkpoint into a model folder",
        "init": "begin a project of your own: FOLDER",
    },
    "use": {
        "ask": "ask a policy: QUESTION checkpoint=RUN",
        "evaluate": "evaluate a policy on benchmarks: checkpoint=RUN benchmark=all",
        "compare": "compare two evaluations, question by question: RUN RUN",
        "merge": "merge several evaluations into one table: RUN RUN",
    },
    "serve": {
        "serve": "serve a policy that searches: checkpoint=RUN",
        "simulate": "serve a simulator: simulator=prompted_7b",
        "generate": "serve samplers for generator=vllm_server",
        "retrieve": "serve search over a corpus: search=bm25",
    },
    "make a simulator, or a cold start of a policy": {
        "collect": "record episodes of an agent: folder=FOLDER",
        "judge": "judge their searches, and make a simulator's tuning rows of them",
        "tune": "tune a simulator on rows, or a policy on episodes: experiment=NAME",
        "fidelity": "measure how well a simulator plays: simulator=NAME",
        "template": "derive a simulator's prompt from its tuning data",
    },
}
NAMES = [name for group in COMMANDS.values() for name in group]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first word names, with the others.

    Args:
        arguments: of the command line, without the name of the program; None: `sys.argv`'s.

    Raises:
        SystemExit: as the command ends; 2 where there is no such command.
    """
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview())
        return
    if name in ("-V", "--version"):
        from zerosearch import __version__

        print(__version__)
        return
    if name not in NAMES:
        near = FORMER.get(name) or next(iter(difflib.get_close_matches(name, NAMES, n=1)), None)
        hint = f"did you mean `zerosearch {near}`?" if near else "`zerosearch --help` lists them"
        print(f"{name}: there is no such command; {hint}", file=sys.stderr)
        raise SystemExit(2)
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # classes of one's own lie there; a script has not got it
    # Lightning starts further processes as `python -m` the module of __main__, a script or not.
    sys.modules["__main__"].__spec__ = find_spec("zerosearch.__main__")
    sys.argv = [f"zerosearch {name}", *rest]  # the first is what a parser prints
    import_module(f"zerosearch.commands.{name}").main()


def overview() -> str:
    """All commands, in groups."""
    lines = ["usage: zerosearch COMMAND [key=value ...]", "       zerosearch COMMAND --help"]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:<10} {said}" for name, said in commands.items())]
    return "\n".join(lines)
