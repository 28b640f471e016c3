"""A module imports only from layers below its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = "zerosearch"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# Lowest first; docs/architecture.md says what each is for.
LAYERS = (
    "core",
    "types",
    "data",
    "clients",
    "search",
    "reward",
    "algorithms",
    "policy",
    "generation",
    "rollout",
    "simulator",
    "training",
    "tuning",
    "serving",
    "callbacks",
    "command_line",
    "evaluation",
    "answering",
    "planning",
    "assembly",
    "commands",
    "cli",
    "__main__",
    "starter",
)
LAYER_OF = {name: layer for layer, name in enumerate(LAYERS)}

FILES = sorted(SOURCE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = [PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, *, package: bool = False) -> set[str]:
    """Full names of what a module imports from the project, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") + (["__init__"] if package else [])
                base = ".".join([*parents[: -node.level], *([base] if base else [])])
            # `from zerosearch import data` names a module after the import
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == PACKAGE else {base}
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


def test_packages_do_not_re_export() -> None:
    for path in FILES:
        if path.name == "__init__.py" and path.parent != SOURCE:
            assert path.read_text(encoding="utf-8").strip() == "", path


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
