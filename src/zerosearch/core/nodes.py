"""Nodes of the configuration: their values are held against what they are given to.

A node is a constructor call (`_target_`), so the constructor's annotations say what its values may
be. They are checked for all nodes of a program before the first object is made.
"""

from __future__ import annotations

import builtins
import difflib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ForwardRef, Literal, Union, get_args, get_origin

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, NotNegative, ShareAboveZero
from zerosearch.core.renamed import new_key

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
PLAIN = (bool, int, float, str, NoneType, Path, Any, list, tuple, dict)
CONTAINERS: Any = (list, tuple, set, dict, Sequence, Iterable, Mapping)
LOOSE = (*CONTAINERS, Enum)  # without their elements; libraries turn text into members
OF_HYDRA = ("_target_", "_convert_", "_recursive_", "_partial_", "_args_")
# what libraries annotate more widely than they take, by how a target begins
DEVICES = Count | Literal[-1] | Annotated[str, Field(pattern=r"^(auto|-1|\d+(,\d+)*)$")] | list[int]
BATCHES = Union[Count, ShareAboveZero, None]  # noqa: UP007 (pyright)
NARROWER: dict[str, dict[str, Any]] = {
    "torch.optim.": {"lr": NotNegative, "weight_decay": NotNegative, "eps": NotNegative},
    "lightning.pytorch.Trainer": {
        "devices": DEVICES,
        "num_nodes": Count,
        "limit_train_batches": BATCHES,
        "val_check_interval": Union[Count, None],  # noqa: UP007 (pyright)
        "log_every_n_steps": Count,
    },
    "peft.LoraConfig": {"r": Count, "lora_alpha": Count},
}
REMEDIES = {  # by pydantic's kind of error; other kinds keep its words
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text, in quotes where it looks like something else",
    "string_pattern_mismatch": "auto, a number, or numbers of devices",
    "literal_error": "{expected}",
    "list_type": "a list, such as [a,b]",
    "tuple_type": "a list, such as [a,b]",
    "dict_type": "names with values, such as {{a: 1}}",
    "none_required": "null",
    "missing": "a value more",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "value_error": "a choice of its group, or a node with _target_",
}


def check_nodes(cfg: DictConfig, *keys: str) -> None:
    """Hold the values of nodes, and of the nodes in them, against their constructors.

    Values that are still missing (`???`) are left to the construction.

    Args:
        cfg: the whole configuration.
        keys: of nodes, or of what holds nodes; those that are absent or null are passed over.

    Raises:
        InputError: names each wrong key, its value and what to give.
    """
    seen: set[str] = set()
    wrong: dict[str, str] = {}
    for key in keys:
        for place, message in _wrong_below(OmegaConf.select(cfg, key), seen):
            wrong.setdefault(place, message)
    if wrong:
        raise InputError("; ".join(place + message for place, message in wrong.items()))


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all that is no mapping in plain containers."""
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def _wrong_below(node: Any, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Keys of a container and of all that it holds, each with what is wrong about it."""
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
        return
    if (place := node._get_full_key(None)) in seen:
        return
    seen.add(place)
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    parameters = arguments_of(str(target)) if target is not None else None
    if parameters is None and _is_gone(str(target)):
        said = f"={target}: there is no such module; the changelog says where those of 0.1 are"
        yield f"{place}._target_", said
    for name in range(len(node)) if isinstance(node, ListConfig) else list(node):
        if name in OF_HYDRA or OmegaConf.is_missing(node, name):
            continue
        try:
            child = _child(node, name)
        except (InterpolationKeyError, InterpolationToMissingValueError) as error:
            yield f"{place}.{name}", _lacking(error)
            continue
        if parameters is not None:
            yield from _wrong_value(child, str(name), parameters)
        yield from _wrong_below(child, seen)


def _is_gone(target: str) -> bool:
    """Whether it is of a module that this package does not have, as after a move."""
    package, module = __name__.partition(".")[0], target.rpartition(".")[0]
    try:
        return module.startswith(f"{package}.") and find_spec(module) is None
    except ModuleNotFoundError:  # of the package above it
        return True


def _lacking(error: Exception) -> str:
    """What an interpolation points to and the configuration does not have."""
    found = re.search(r"Interpolation key '(?:(\w+)[^']*)'", str(error))
    if found is None:
        return f": {str(error).splitlines()[0]}"
    key, group = found[0].split("'")[1], found[1]
    return f" is taken from {key}, which is not there: choose another {group}=, or give it a value"


def _child(node: DictConfig | ListConfig, name: Any) -> Node:
    """What a name stands for; an interpolation gives what it points to, with its own key."""
    child = node._get_node(name)
    assert isinstance(child, Node)
    if not child._is_interpolation():
        return child
    if selects := re.fullmatch(r"\$\{oc\.select:([\w.]+),.*\}", str(child._value())):
        *path, last = selects[1].split(".")
        holder = OmegaConf.select(node._get_root(), ".".join(path)) if path else node._get_root()
        if isinstance(holder, DictConfig) and last in holder:
            return _child(holder, last)
    return child._dereference_node()


def _wrong_value(
    child: Node, name: str, parameters: Mapping[str, TypeAdapter[Any]]
) -> Iterator[tuple[str, str]]:
    key = child._get_full_key(None)
    kind = parameters.get(name, parameters.get("**"))
    if kind is None:
        if renamed := new_key(key):
            yield key, f": is {renamed} now"
            return
        close = difflib.get_close_matches(name, parameters, n=1)
        advice = f"did you mean {close[0]}?" if close else f"known are {', '.join(parameters)}"
        yield key, f" is unknown: {advice}"
        return
    if isinstance(child, DictConfig) and "_target_" in child:
        return  # a node of its own
    try:
        value: Any = (
            OmegaConf.to_container(child, resolve=True) if _holds(child) else child._value()
        )
    except InterpolationKeyError:
        return  # said where it stands
    try:
        kind.validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        remedies: dict[tuple[str, str], list[str]] = {}
        for each in _telling(error.errors()):
            place, shown = _place(key, value, each["loc"])
            words = REMEDIES.get(each["type"], str(each["msg"])).format(**each.get("ctx", {}))
            remedies.setdefault((place, str(shown)), []).append(words)
        for (place, shown), words in remedies.items():
            yield place, f"={shown}: give {' or '.join(dict.fromkeys(words))}"


def _telling(errors: Sequence[Any]) -> Sequence[Any]:
    """Of a union, the alternatives whose type is right but whose range is not, if there are any."""
    ranges = [e for e in errors if not e["type"].endswith("_type") and e["type"] != "value_error"]
    return ranges or errors


def _place(key: str, value: Any, where: Sequence[Any]) -> tuple[str, Any]:
    """Key and value of what pydantic objects to; it also names alternatives of unions."""
    for part in where:
        if (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        ):
            key, value = f"{key}.{part}", value[part]
    return key, value


@cache
def arguments_of(target: str) -> dict[str, TypeAdapter[Any]] | None:
    """What a target's arguments may be, by name; `**` stands for any other name.

    None where the target cannot be imported, or tells nothing.
    """
    try:
        function: Any = get_object(target)
        parameters = inspect.signature(function).parameters.values()
    except (ImportError, ValueError, TypeError):
        return None  # its construction says why
    inside: dict[str, Any] = {}
    for each in reversed(function.__mro__ if inspect.isclass(function) else (function,)):
        inside |= vars(sys.modules.get(inspect.unwrap(each).__module__, builtins))
    kinds: dict[str, Any] = {}
    for each in parameters:
        if each.kind is not each.VAR_POSITIONAL:
            name = "**" if each.kind is each.VAR_KEYWORD else each.name
            kinds[name] = Any if name == "**" else written(each.annotation, inside)
            if each.default is None:  # older code says so without "| None"
                kinds[name] = Union[kinds[name], None]  # noqa: UP007 (made while running)
    for begin, narrower in NARROWER.items():
        if target.startswith(begin):
            kinds |= {name: kind for name, kind in narrower.items() if name in kinds}
    return {name: _adapter(kind) for name, kind in kinds.items()}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind, config=STRICT)
    except PydanticSchemaGenerationError:
        return TypeAdapter(Any)  # a container that pydantic does not know


def written(kind: Any, inside: Mapping[str, Any]) -> Any:
    """An annotation as a configuration can write it: an object is written as a node.

    What other libraries make of values for their own classes is not known: any value passes.

    Args:
        kind: the annotation; a string is evaluated.
        inside: names that it may use.
    """
    if isinstance(kind, ForwardRef | InitVar):
        kind = kind.__forward_arg__ if isinstance(kind, ForwardRef) else kind.type
    if isinstance(kind, str):
        try:
            return written(eval(kind, dict(inside)), inside)
        except Exception:
            return Any  # imported for type checkers alone, or no type at all
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is None or kind in PLAIN or kind is Ellipsis or origin is Literal:
        return kind
    if origin is Annotated:
        return Annotated[written(arguments[0], inside), *arguments[1:]]
    parts = tuple(written(each, inside) for each in arguments)
    if origin in (Union, UnionType):
        return Union[parts]  # noqa: UP007 (made while running)
    known = kind if origin is None else origin
    if not inspect.isclass(known) or known in (inspect.Parameter.empty, object):
        return Any  # also a type variable, or an alias
    if parts and issubclass(known, CONTAINERS):
        container: Any = known
        return container[parts]
    ours = known.__module__.startswith("zerosearch.")
    return MADE if (ours or known is Callable) and not issubclass(known, LOOSE) else Any


def _holds(child: Node) -> bool:
    """Whether it is a list or a mapping."""
    return isinstance(child, DictConfig | ListConfig) and not child._is_none()


def _made(value: Any) -> Any:
    if not isinstance(value, dict) or "_target_" not in value:
        raise InputError("not a node")
    return value


MADE = Annotated[Any, AfterValidator(_made)]
