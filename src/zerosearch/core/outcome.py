"""What a run came to, in words and in the order of `summary.json`.

Light on imports, as `zerosearch.core.runs`.
"""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zerosearch.core.text import duration

SIMULATOR = "simulator"  # in the folder of a tuning: the model that was tuned
_NAMES = ("start/f1", "test/f1", "start/loss", "test/loss")  # of a policy, of what was tuned
TOP = (  # of summary.json, in this order
    "status",
    "error",
    *(f"{name}{end}" for name in _NAMES for end in ("", "_low", "_high")),
    "engine",
    "questions",
    "differs",
    "seconds_of_all",
    "seconds",
    "command",
    "go_on",
    "seed",
    "version",
    "git_commit",
)
_RESULTS = (*_NAMES, "test/f1_low", "test/f1_high")
_BEFORE = {  # a run that has the latter has a column for the former, whether it came to it or not
    **{name: "start/f1" for name in ("test/f1", "test/f1_low", "test/f1_high")},
    "test/loss": "start/loss",
}
_COLUMNS = 8  # in a table of runs, besides results: experiment, seed, status, what differs
_OF_THE_MACHINE = ("hydra.", "hydra/", "threads=", "resume=", "paths.")  # say nothing of a method


def arranged(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a run with the result on top and everything else below, in its own order."""
    top = {name: facts[name] for name in TOP if name in facts}
    return top | {name: value for name, value in facts.items() if name not in top}


def headline(facts: Mapping[str, Any]) -> str:
    """What was measured before and after, in one line."""
    parts = []
    for name, shown in (("f1", "F1"), ("loss", "loss")):
        values = [facts[key] for key in (f"start/{name}", f"test/{name}") if key in facts]
        if not values:
            continue
        said = f"{shown} " + " -> ".join(f"{value:.3f}" for value in values)
        if "engine" in facts and name == "f1":
            said += f" ({facts['engine']}, {facts['questions']} questions)"
        if f"test/{name}_low" in facts:
            low, high = facts[f"test/{name}_low"], facts[f"test/{name}_high"]
            said += f", 95% CI {low:.3f}-{high:.3f}"
        parts.append(said)
    return "; ".join(parts) or "not evaluated"


def ending(facts: Mapping[str, Any], folder: Path) -> str:
    """How a run ended, what came out, where it lies, and what to do next."""
    said = f"{facts['status']} after {duration(facts['seconds_of_all'])}: {headline(facts)}"
    lines = [said, f"folder: {short_path(folder)}"]
    command = _command()
    if command in ("train", "tune"):
        lines += [f"next: {each}" for each in next_commands(command, folder, facts)]
    return "\n".join(lines)


def of_command(folder: Path) -> dict[str, Any]:
    """What Hydra was asked for: the choice of every group, the settings in which the run differs
    from its experiment, and the command that goes on with it.

    Args:
        folder: of the run.
    """
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {"choices": {}}
    choices = HydraConfig.get().runtime.choices
    hidden = (*_OF_THE_MACHINE, "experiment=")
    given = HydraConfig.get().overrides.task
    return {
        "differs": [item for item in given if not item.lstrip("+~").startswith(hidden)],
        "go_on": f"zerosearch {_command()} resume={shlex.quote(str(folder))}",
        "choices": {k: v for k, v in choices.items() if v and "hydra" not in str(k)},
    }


def choices_first(words: Iterable[str]) -> list[str]:
    """Overrides or their keys in the order of a name, which may be cut short at its end.

    What is chosen, such as `search=bm25` and `seed=1`, says more than a value of a setting within.
    """
    return sorted(words, key=lambda word: "." in word.partition("=")[0])


def name_of(facts: Mapping[str, Any]) -> str:
    """What a run is, in one line: its experiment and the settings in which it differs."""
    experiment = facts.get("choices", {}).get("experiment", "")
    return " ".join(filter(None, [experiment, *choices_first(facts.get("differs", []))]))


def columns_of(facts: Mapping[str, Any]) -> tuple[dict[str, float | str | None], list[str]]:
    """A run as a row of a table: its settings, at most `_COLUMNS`, and what came out.

    Args:
        facts: of its summary.

    Returns:
        Values by column, numbers where they are numbers, None for a result after training that it
        did not come to; and the columns to begin with.
    """
    differing = [item.partition("=") for item in choices_first(facts.get("differs", []))]
    given = {key: value for key, _, value in differing}
    fixed = {"experiment": facts.get("choices", {}).get("experiment"), "seed": facts.get("seed")}
    fixed |= {key: facts[key] for key in ("status",) if key in facts}
    differs = [key for key in given if key not in fixed]
    room = _COLUMNS - len(fixed)
    if len(differs) > room:  # the last one takes what is left
        rest = " ".join(f"{key}={given[key]}" for key in differs[room - 1 :])
        differs, given["more"] = [*differs[: room - 1], "more"], rest
    settings = {**fixed, **{key: given[key] for key in differs}}
    results = [key for key in _RESULTS if key in facts or _BEFORE.get(key) in facts]
    found = {
        **{key: _number(value) for key, value in settings.items() if value is not None},
        **{key: round(facts[key], 4) if key in facts else None for key in results},
    }
    first = {*[*differs, *({"seed"} & {*given})][:3], *_NAMES}  # results are not crowded out
    return found, [key for key in found if key in first]


def _number(value: Any) -> float | str:
    """A number where it is one; what is switched off is said to be."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value) or "removed"  # by ~key
    return number if math.isfinite(number) else str(value)


def is_complete(before: Mapping[str, Any], facts: Mapping[str, Any], steps: int) -> bool:
    """Whether a run that is to go on has nothing left to do.

    Args:
        before: what it has noted of itself.
        facts: of the present process.
        steps: that are asked for.
    """
    same = all(before.get(name, "") == facts.get(name) for name in ("differs", "choices", "seed"))
    return before.get("status") == "completed" and same and before.get("steps", 0) >= steps


def seconds_of(before: Mapping[str, Any], folder: Path) -> float:
    """Seconds of all processes that have worked on a run; of one killed, to its last step."""
    seconds = float(before.get("seconds_of_all", 0.0))
    metrics = folder / "metrics.csv"
    if before.get("status") == "running" and "began" in before and metrics.is_file():
        seconds += max(0.0, metrics.stat().st_mtime - before["began"])
    return seconds


def _command() -> str | None:
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().job.config_name if HydraConfig.initialized() else None


def next_commands(command: str, folder: Path, facts: Mapping[str, Any]) -> list[str]:
    """What to do after a training, the likeliest first.

    Args:
        command: that was run, `train` or `tune`.
        folder: of the run.
        facts: of its summary.
    """
    place, completed = short_path(folder), facts["status"] == "completed"
    steps = "policy_steps" if command == "train" else "steps"
    more = f" {steps}={2 * facts['steps']}" if completed and "steps" in facts else ""
    goes_on = f"{program(command)} resume={place}{more}"
    if (folder / SIMULATOR / "zerosearch.json").is_file():
        use = f"{program('train')} simulator={place}/{SIMULATOR}"
    else:
        use = f"{program('evaluate')} checkpoint={place}"
    look = f"tensorboard --logdir {place}/tensorboard"
    if _has_makefile():
        look = make_tensorboard(command)
    looks = [report_command(folder)]
    looks += [look] if (folder / "tensorboard").is_dir() else []
    return [use, *looks, goes_on] if completed else [goes_on, *looks]


def charts_address(charts: Path) -> str:
    """The command that shows the charts of all runs, and where.

    Args:
        charts: folder of links to the runs, `logs/tensorboard/<task>`.
    """
    look = f"tensorboard --logdir {short_path(charts)}"
    if _has_makefile():
        look = make_tensorboard(charts.name)
        if charts.parent != Path.cwd() / "logs" / "tensorboard":
            look += f" args='--logdir {short_path(charts)}'"
    return f"{look}, then http://localhost:6006/#custom_scalars"


def make_tensorboard(task: str) -> str:
    """How a checkout shows the charts of the runs of a task."""
    return "make tensorboard" if task == "train" else f"make tensorboard task={task}"


def program(command: str) -> str:
    """How `zerosearch COMMAND` is called where this process was started."""
    if shutil.which("zerosearch"):
        return f"zerosearch {command}"
    if _has_makefile():
        return f"make {command}"
    return f"{short_path(Path(sys.executable))} -m zerosearch {command}"


def report_command(folder: Path) -> str:
    """The command that makes a page about a run or a sweep."""
    command, place = program("report"), short_path(folder)
    return f"{command} run={place}" if command.startswith("make") else f"{command} {place}"


def _has_makefile() -> bool:
    """Whether `make COMMAND` works here, and is needed: the environment is not active."""
    return not shutil.which("zerosearch") and Path("Makefile").is_file() and Path("src").is_dir()


def short_path(path: Path) -> str:
    """A path from the working directory where it lies below that, quoted for a shell."""
    own = Path.cwd()
    return shlex.quote(str(path.relative_to(own) if path.is_relative_to(own) else path))
