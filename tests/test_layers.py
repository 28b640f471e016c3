"""What may name what: the layers of docs/architecture.md, in code and in YAML; sizes of files."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

from tests.helpers.configs import CONFIGS, ROOT

PACKAGE = "zerosearch"
SOURCE = ROOT / "src" / PACKAGE
STARTER = SOURCE / "starter"
DOTTED = re.compile(rf"{PACKAGE}(\.[A-Za-z]\w*)+")

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = PAGE.partition("\n## Layers\n")[2].partition("\n## ")[0]
# Lowest first: what each may import, "any" for all that is above it on the page.
IMPORTS = {
    name: set(re.findall(r"`(\w+)`", allowed)) if allowed != "any" else None
    for name, allowed in re.findall(r"^\| `(\w+)(?:/|\.py)` \|.*\| (.*) \|$", ROWS, re.MULTILINE)
}
LAYERS = tuple(IMPORTS)
LAYER_OF = {name: layer for layer, name in enumerate(LAYERS)}

FILES = sorted(SOURCE.rglob("*.py"))
YAMLS = [*sorted(CONFIGS.rglob("*.yaml")), *sorted(STARTER.rglob("*.yaml"))]
# What composes a configuration; what a configuration names lies below it, and is no part of it.
COMPOSING = ("command_line", *LAYERS[LAYERS.index("assembly") :])
LONGEST_FILE, LONGEST_BODY = 300, 55  # lines; a body is a function without signature and docstring


def module_name(path: Path) -> str:
    parts = [PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    return SOURCE.parent.joinpath(*name.split(".")).with_suffix(".py").exists()


def imported(source: str, module: str, *, package: bool = False) -> set[str]:
    """Full names of what a module imports from the project, wherever in the file it does.

    A string that is the dotted name of a module or of something in it counts as well.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and DOTTED.fullmatch(str(node.value)):
            found.add(str(node.value))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") + (["__init__"] if package else [])
                base = ".".join([*parents[: -node.level], *([base] if base else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if base == PACKAGE or is_module(name) else base)
    return {name for name in found if name.split(".")[0] == PACKAGE}


def violations(source: str, module: str, *, package: bool = False) -> list[str]:
    """Imports of a module that point upwards."""
    own = module.split(".")[1] if "." in module else None
    wrong = []
    for name in sorted(imported(source, module, package=package)):
        parts = name.split(".")
        target = parts[1] if len(parts) > 1 else None
        if target == own or target not in LAYER_OF:
            continue
        if own is None or LAYER_OF[target] > LAYER_OF[own]:
            wrong.append(f"{module} imports {name}")
    return wrong


def test_every_module_has_its_layer() -> None:
    assert len(FILES) > 40
    tops = {module_name(path).split(".")[1] for path in FILES if path.parent != SOURCE}
    tops |= {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    assert tops <= set(LAYER_OF), f"give {sorted(tops - set(LAYER_OF))} a place in LAYERS"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_downwards(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    package = path.name == "__init__.py"
    assert violations(source, module_name(path), package=package) == []


def test_a_room_imports_the_rooms_that_the_page_says_and_no_others() -> None:
    found: dict[str, set[str]] = {name: set() for name in LAYERS}
    for path in FILES:
        own = path.relative_to(SOURCE).with_suffix("").parts[0]
        for name in imported(path.read_text(encoding="utf-8"), module_name(path)):
            room = name.split(".")[1] if "." in name else own
            found.setdefault(own, set()).update({room} & LAYER_OF.keys() - {own})
    for name, allowed in IMPORTS.items():
        assert allowed in (None, found[name]), f"{name} imports {sorted(found[name])}"


def test_packages_do_not_re_export() -> None:
    for path in FILES:
        if path.name == "__init__.py" and path.parent != SOURCE:
            assert path.read_text(encoding="utf-8").strip() == "", path


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in turn, the first one again at the end; or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Not even for types or inside functions."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        source, own = path.read_text(encoding="utf-8"), module_name(path)
        graph[own] = imported(source, own) - {own}
    assert sum(map(len, graph.values())) > 400
    assert circle(graph) == []


def test_a_circle_is_found() -> None:
    sources = {"a": "import zerosearch.b", "b": "def f():\n from zerosearch.c import x", "c": ""}
    graph = {f"zerosearch.{name}": imported(text, name) for name, text in sources.items()}
    assert circle(graph) == []
    graph["zerosearch.c"] = imported("if TYPE_CHECKING:\n from zerosearch.a import y", "c")
    assert sorted(set(circle(graph))) == ["zerosearch.a", "zerosearch.b", "zerosearch.c"]


# -- configurations --------------------------------------------------------------------------------


def named(value: object) -> set[str]:
    """Every dotted name of the project that is a value of a YAML document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*map(named, value))
    return {value} if isinstance(value, str) and DOTTED.fullmatch(value) else set()


def defined(name: str) -> bool:
    """Whether a module defines it at its top: what is only imported there does not count."""
    module, _, member = name.rpartition(".")
    if not is_module(module):
        return False
    path = SOURCE.parent.joinpath(*module.split(".")).with_suffix(".py")
    top = ast.parse(path.read_text(encoding="utf-8")).body
    return member in {getattr(node, "name", None) for node in top}


def wrong_names(text: str) -> list[str]:
    """What a YAML names of the project and may not."""
    return [
        name
        for name in sorted(named(yaml.safe_load(text)))
        if not defined(name) or name.split(".")[1] in COMPOSING
    ]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_yaml_names_what_there_is_below_the_layer_that_composes_it(path: Path) -> None:
    assert wrong_names(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "name",
    [
        "zerosearch.search.bm52.BM25Search",
        "zerosearch.search.bm25.BM52Search",
        "zerosearch.simulator.engine.SearchRequest",  # is defined in types
        "zerosearch.assembly.assemble",
        "zerosearch.commands.train.train",
        "zerosearch.command_line.keys.Key",
        "zerosearch.search",
    ],
)
def test_a_wrong_name_in_a_yaml_is_found(name: str) -> None:
    assert wrong_names(f"a: [{{b: {name}}}, zerosearch.search.bm25.BM25Search]") == [name]


def test_no_configuration_reaches_what_is_made_of_it() -> None:
    said = ROWS.partition("sees none:")[2].partition(" import neither")[0]
    rooms = re.findall(r"`(\w+)`", said)
    assert len(rooms) == 9
    for path in (path for room in rooms for path in (SOURCE / room).rglob("*.py")):
        found = re.findall(
            r"^\s*(?:import|from) (?:hydra|omegaconf)\b", path.read_text(), re.MULTILINE
        )
        assert not found, path


# -- sizes -----------------------------------------------------------------------------------------


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[min(len(node.body) - 1, ast.get_docstring(node) is not None)]
    return (node.end_lineno or 0) - first.lineno + 1


def test_files_and_functions_are_short() -> None:
    long = []
    for path in [*FILES, *ROOT.glob("scripts/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        source, place = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        if len(source.splitlines()) > LONGEST_FILE:
            long.append(str(place))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                long += [f"{place}:{node.name}"] if body_lines(node) > LONGEST_BODY else []
    assert not long, f"above {LONGEST_FILE} lines a file or {LONGEST_BODY} a function: {long}"


# -- the checks above find what they look for ------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import zerosearch.rollout.tags", "zerosearch.data.rows"),
        ("from zerosearch.commands.train import main", "zerosearch.training.module"),
        ("from zerosearch import training", "zerosearch.types"),
        ("def f():\n    from zerosearch.policy.source import x", "zerosearch.search.bm25"),
        ("from ..callbacks import curriculum", "zerosearch.training.module"),
        ("from ..rollout.tags import SEARCH", "zerosearch.reward.answer"),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import zerosearch.reward",
            "zerosearch.data.sources",
        ),
        ("from zerosearch.types import Question", "zerosearch"),
        ('WORKER = "zerosearch.training.module.X"', "zerosearch.generation.vllm.generator"),
        ("from zerosearch.types import Question", "zerosearch.core.runs"),
    ],
)
def test_an_import_upwards_is_found(source: str, module: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import torch\nfrom zerosearch.types import Turn", "zerosearch.data.rows"),
        ("from zerosearch.policy.tokenizer import render_prompt", "zerosearch.rollout.rollouter"),
        ("from . import kl\nfrom .losses import x", "zerosearch.algorithms.algorithm"),
        ("import zerosearch", "zerosearch.core.runs"),
        ("import zerosearchlight.rollout", "zerosearch.data.rows"),
        ("from zerosearch.core.seeding import derive_seed", "zerosearch.types"),
    ],
)
def test_an_import_downwards_is_allowed(source: str, module: str) -> None:
    assert violations(source, module) == []
