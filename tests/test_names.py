"""A name says one thing: no two classes or aliases of the package share one."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import zerosearch

PACKAGE = Path(zerosearch.__file__).parent


def named(tree: ast.Module) -> Iterator[str]:
    """Classes and aliases of a module, without the underscore of private ones.

    An alias is assigned at the top of a module and written like a class.
    """
    for node in tree.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if isinstance(node, ast.ClassDef):
            names = [node.name]
        for name in (each.lstrip("_") for each in names):
            if name[:1].isupper() and not name.isupper():
                yield name


def test_no_two_classes_or_aliases_share_a_name() -> None:
    modules = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in named(ast.parse(path.read_text())):
            modules[name].append(str(path.relative_to(PACKAGE)))
    assert {"Question", "SearchEngine", "OnText"} <= set(modules), "classes, protocols and aliases"
    assert {name: where for name, where in modules.items() if len(where) > 1} == {}
