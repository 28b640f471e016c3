"""The command `zerosearch`, also `python -m zerosearch`: names of programs and their modules.

Light on imports: help and a wrong name are answered before anything else is loaded.
"""

from __future__ import annotations

import difflib
import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass

USAGE = "zerosearch COMMAND [key=value ...]"


@dataclass(frozen=True)
class Program:
    """What a command runs."""

    module: str  # as of `python -m`
    help: str  # one line


PROGRAMS: dict[str, dict[str, Program]] = {
    "train": {
        "train": Program(
            "zerosearch.commands.train", "train a policy or tune a simulator: experiment=NAME"
        ),
        "plan": Program(
            "zerosearch.commands.plan", "what memory and time a run needs: experiment=NAME"
        ),
        "data": Program("zerosearch.commands.data", "fetch public data: name=nq_hotpotqa"),
        "export": Program("zerosearch.commands.export", "make a checkpoint a model folder"),
        "init": Program("zerosearch.commands.init", "begin a project of one's own: FOLDER"),
    },
    "use": {
        "ask": Program("zerosearch.commands.ask", "ask a policy: QUESTION checkpoint=RUN"),
        "evaluate": Program(
            "zerosearch.commands.evaluate", "fill a table: checkpoint=RUN benchmark=all"
        ),
        "compare": Program("zerosearch.commands.compare", "test the difference of two methods"),
        "merge": Program("zerosearch.commands.merge", "make one table of several evaluations"),
    },
    "serve": {
        "serve": Program("zerosearch.commands.serve", "a policy that searches: checkpoint=RUN"),
        "simulate": Program("zerosearch.commands.simulate", "a simulator: simulator=prompted_7b"),
        "generate": Program("zerosearch.commands.generate", "samplers for generator=vllm_server"),
        "retrieve": Program("zerosearch.commands.retrieve", "search over a corpus: search=bm25"),
    },
    "make a simulator": {
        "collect": Program("zerosearch.commands.collect", "record searches of an agent"),
        "judge": Program("zerosearch.commands.judge", "make tuning rows of recorded searches"),
        "fidelity": Program("zerosearch.commands.fidelity", "measure a simulator: simulator=NAME"),
        "template": Program("zerosearch.commands.template", "find the prompt of a data set"),
    },
}
COMMANDS = {name: program for group in PROGRAMS.values() for name, program in group.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program that the first word names, with the others.

    Args:
        arguments: of the command line, without the name of the program; None: `sys.argv`'s.

    Raises:
        SystemExit: as the program ends; 2 where there is no such command.
    """
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview())
        return
    if name in ("-V", "--version"):
        from zerosearch import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `zerosearch {near[0]}`?" if near else "`zerosearch --help` lists them"
        print(f"{name}: there is no such command; {hint}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv[1:] = rest
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # classes of one's own lie there; a script has not got it
    # as `python -m MODULE`: processes that the program starts of itself are started so, too
    runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)


def called(module: str) -> str:
    """How the program of a module is called."""
    names = [name for name, program in COMMANDS.items() if program.module == module]
    return f"zerosearch {names[0]}" if names else f"python -m {module}"


def overview() -> str:
    """All commands, in groups."""
    lines = [f"usage: {USAGE}", "       zerosearch COMMAND --help"]
    for group, programs in PROGRAMS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<10} {program.help}" for name, program in programs.items()]
    return "\n".join(lines)
