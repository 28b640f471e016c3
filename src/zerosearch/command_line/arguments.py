"""Words of a command line that Hydra would not understand, turned into those that it does.

Light on imports: it is loaded before the command line is parsed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser

from zerosearch.command_line.user_configs import find
from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.core.run_lock import check_unlocked
from zerosearch.core.runs import (
    LATEST,
    PROJECT_ROOT,
    PROMPT_FILE,
    check_version,
    global_rank,
    is_checkpoint,
)
from zerosearch.core.sweep_folder import COMMAND, JOBS, is_sweep_folder, name_a_run

_PLAIN = re.compile(r"[\w./~:+@%-]+")  # means itself to Hydra


def expand_resume(arguments: list[str], command: str = "train") -> list[str]:
    """Turn `resume=<run folder>` into the saved overrides of that run, in that folder.

    The folder of a sweep becomes the sweep's command line, in that folder. Overrides given again
    on the command line win. Such a folder is configuration, and trusted as the command line is: it
    can name any program. A checkpoint file is left as it is: it starts a new run folder.
    `resume=latest` is the newest run of the command that has begun.

    Args:
        arguments: of the command line.
        command: whose runs can be resumed, by the name of its configuration.

    Raises:
        InputError: nothing to resume there, of a version that this one cannot go on with, or of
            another user, or another process writes to the run folder.
    """
    given = [item.removeprefix("resume=") for item in arguments if item.startswith("resume=")]
    if not given or given[-1] in ("null", ""):
        return arguments
    place = unquoted(given[-1])  # the further ranks of a run get the words that are made below
    if place == LATEST:
        place = str(_latest_run(arguments, command))
    if place != given[-1] or not _PLAIN.fullmatch(place):
        word = f"resume={quoted(place)}"
        arguments = [word if item.startswith("resume=") else item for item in arguments]
    folder = Path(place)
    if is_checkpoint(folder):
        check_version(place, folder.resolve().parent.parent)
        return arguments
    saved_file = folder / ".hydra" / "overrides.yaml"
    if not saved_file.is_file():
        if (folder / JOBS).is_file():
            return _of_sweep(place, arguments, command)
        if is_sweep_folder(folder):
            raise InputError(f"resume={place} {name_a_run(folder)}")
        raise InputError(
            f"resume={place} is neither a checkpoint file nor a run folder (it has no "
            f".hydra/overrides.yaml): give latest, a folder of logs/{command}/runs or a .ckpt"
        )
    _check_owner(place, folder, saved_file)
    saved = _read_yaml(saved_file)
    if not isinstance(saved, list) or not all(isinstance(item, str) for item in saved):
        what = "empty" if saved is None else "no list of overrides"
        raise InputError(f"resume={place}: {saved_file} is {what}; give a .ckpt of that run")
    check_version(place, folder)
    if (other := command_of_run(folder)) not in (None, command):
        raise InputError(f"resume={place} is a run of {other}, and this is {command}")
    folder = folder.resolve()
    if global_rank() == 0:  # which holds the lock for the others
        check_unlocked(folder)
    taken = {override_key(item) for item in arguments}
    kept = [item for item in saved if override_key(item) not in taken]
    # it may have been a job of a sweep, whose settings are among those saved
    return [*kept, *arguments, "hydra.mode=RUN", f"hydra.run.dir={quoted(folder)}"]


def _of_sweep(place: str, arguments: list[str], command: str) -> list[str]:
    """The command line of a sweep that goes on in its folder."""
    folder = Path(place).resolve()
    saved_file = folder / COMMAND
    if not saved_file.is_file():
        raise InputError(f"resume={place} has no {COMMAND}: give the sweep's command again")
    _check_owner(place, folder, saved_file)
    try:
        saved = _read_yaml(saved_file)["hydra"]
        words = [*saved["overrides"]["task"], *saved["overrides"]["hydra"]]
        other = saved["job"]["config_name"]
    except (LookupError, TypeError) as error:
        raise InputError(f"{saved_file} does not say how the sweep was started") from error
    if other != command:
        raise InputError(f"resume={place} is a sweep of {other}, and this is {command}")
    arguments = [item for item in arguments if not item.startswith("resume=")]
    taken = {override_key(item) for item in arguments} | {"hydra.mode", "hydra.sweep.dir"}
    kept = [item for item in words if override_key(item) not in taken]
    return [*kept, *arguments, "hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(folder)}"]


def _check_owner(place: str, *parts: Path) -> None:
    """Refuse a run folder that somebody else has written; root may write anything anyway."""
    for part in parts:
        if (owner := part.stat().st_uid) not in (0, os.geteuid()):
            raise InputError(
                f"resume={place}: {part} belongs to another user (uid {owner}), and the settings "
                "of a run can name any program: read its .hydra/overrides.yaml, and go on from a "
                "copy (cp -r), or from one of its checkpoints/"
            )


def _latest_run(arguments: list[str], command: str) -> Path:
    """Where `latest` of a command's own task points."""
    key = "paths.log_dir="
    given = [unquoted(item.removeprefix(key)) for item in arguments if item.startswith(key)]
    task = Path([str(PROJECT_ROOT / "logs"), *given][-1]) / command
    if not (task / LATEST).is_dir():
        raise InputError(f"resume={LATEST}: no run of {task} has begun; start one without resume=")
    return (task / LATEST).resolve()


def command_of_run(run: Path) -> str | None:
    """Which command a run is of; None where its folder does not say."""
    return _noted(run)[0]


def tunes_simulator(run: Path) -> bool:
    """Whether a run tunes a simulator, rather than training or tuning a policy."""
    command, choices = _noted(run)
    return command == "tune" and choices.get("tuned") != "policy"


def _noted(run: Path) -> tuple[str | None, dict[str, str]]:
    """A run's command and choices of groups, as Hydra notes them; None where no file does."""
    file = run / ".hydra" / "hydra.yaml"
    if not file.is_file():
        return None, {}
    try:
        noted = _read_yaml(file)["hydra"]
        return noted["job"]["config_name"], dict(noted.get("runtime", {}).get("choices", {}))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file} does not say which command the run is of") from error


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{file} cannot be read as YAML: {said}") from error


def keep_override(run: Path, key: str, value: str) -> None:
    """Note what a setting came to mean, so that the run means the same when it is resumed."""
    file = run / ".hydra" / "overrides.yaml"
    if file.is_file():
        saved = _read_yaml(file) or []
        if f"{key}={value}" in saved:
            return  # its place among the words stays, too
        kept = [item for item in saved if override_key(item) != key]
        word = f"{key}={value if _PLAIN.fullmatch(value) else quoted(value)}"
        with replacing(file) as target:
            target.write(yaml.safe_dump([*kept, word]).encode())


def quote_paths(arguments: list[str]) -> list[str]:
    """Quote values that are paths of what is there, but would mean something else to Hydra.

    A job of a sweep lies in a folder such as `simulator=scripted,seed=1`.
    """
    return [
        f"{key}={quoted(value)}"
        if "/" in value and not _PLAIN.fullmatch(value) and _is_there(value)
        else item
        for item in arguments
        for key, _, value in [item.partition("=")]
    ]


def _is_there(place: str) -> bool:
    try:
        return Path(place).exists()
    except (OSError, ValueError):  # no path at all
        return False


def expand_simulator(arguments: list[str]) -> list[str]:
    """Turn `simulator=<folder of a tuned simulator>` into the choice that uses such folders.

    Raises:
        InputError: there is no tuned simulator at a path.
    """
    expanded = []
    for item in arguments:
        value = unquoted(item.removeprefix("simulator="))
        if not item.startswith("simulator="):
            expanded.append(item)
        elif _is_there(f"{value}/{PROMPT_FILE}"):
            expanded += ["simulator=exported", f"simulator.folder={quoted(value)}"]
        elif "/" in value and ("," not in value or _is_there(value)):
            raise InputError(
                f"simulator={value} is no folder of a tuned simulator (it has no {PROMPT_FILE}): "
                "give the folder simulator/ that a tuning run leaves, or a name of "
                "configs/simulator"
            )
        else:
            expanded.append(item)
    return expanded


def expand_null_groups(arguments: list[str]) -> list[str]:
    """Turn `logger=null` into `~logger`: the one is Hydra's for values, the other for groups."""
    groups = (item.removesuffix("=null") for item in arguments)
    return [
        f"~{group}" if group != item and _is_group(group) else item
        for item, group in zip(arguments, groups, strict=True)
    ]


def _is_group(name: str) -> bool:
    found = find(name)
    return found is not None and found.is_dir()


def refuse_dashes(arguments: list[str]) -> None:
    """Raise an InputError where a key is given as other programs take their options."""
    known = [option for option in get_args_parser()._option_string_actions if "--" in option]
    for word in arguments:
        name, sign, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and not any(each.startswith(f"--{name}") for each in known):
            meant = f"{name}{sign or '='}{value or 'VALUE'}"
            raise InputError(f"{word}: there is no such flag; keys are given as {meant}")


def refuse_two_modes(arguments: list[str], command: str, *, sweeps: bool) -> None:
    """Raise an InputError where Hydra is asked for a sweep, and to show something or in vain.

    Args:
        arguments: of the command line.
        command: its name.
        sweeps: whether it can be swept.
    """
    asked = {*arguments} & {"-m", "--multirun", "hydra.mode=MULTIRUN"}
    if not sweeps and asked:
        raise InputError(
            f"{min(asked)}: zerosearch {command} runs once and is not swept; train, tune, evaluate "
            "and fidelity are (docs/sweeps.md)"
        )
    shows = {*arguments} & {"--cfg", "-c", "--info", "-i"}
    if shows and {*arguments} & {"-m", "--multirun"}:
        raise InputError(
            f"{min(shows)} shows one configuration and starts nothing, -m starts a sweep: leave "
            "one of them out"
        )


def override_key(override: str) -> str:
    """The key that an override sets."""
    return override.split("=", 1)[0].lstrip("+~")


def quoted(value: str | Path) -> str:
    """A text that Hydra takes for itself, whatever quotes, commas, brackets or = are in it."""
    doubled = re.sub(r"(\\+)(?='|$)", r"\1\1", str(value))  # else they would escape the quote
    return "'" + doubled.replace("'", "\\'") + "'"


def unquoted(value: str) -> str:
    """The text behind a word of a command line: `quoted` undone, or as it is."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        mark = value[0]
        return re.sub(r"(\\+)(?=" + mark + r"|$)", _halved, value[1:-1])
    return value


def _halved(backslashes: re.Match[str]) -> str:
    return backslashes[0][: len(backslashes[0]) // 2]
