"""Options of one's own: `configs/` of the working directory comes before the files shipped.

It adds options to the groups and wins for one of the same name. What lies at its top is not read:
there a command's own YAML lies, which says what the command is.

Light on imports: it is loaded before the command line is parsed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

from zerosearch.core.errors import InputError
from zerosearch.core.runs import CONFIGS

PROVIDER = "working directory"  # Hydra's name of who brings a folder of files
_SHOWN = 6

log = logging.getLogger(__name__)


class Groups(FileConfigSource):
    """A folder without the files at its top."""

    @staticmethod
    def scheme() -> str:
        return "groups"

    def is_config(self, config_path: str) -> bool:
        return "/" in config_path and super().is_config(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        """As Hydra does; a file that names itself, and means the one whose place it takes, is told.

        Raises:
            InputError: it would include itself without end.
        """
        found, name = super().load_config(config_path), Path(config_path).stem
        if isinstance(found.config, DictConfig) and name in found.config.get("defaults", []):
            raise InputError(
                f"{self.path}/{config_path} has itself among its defaults, for it takes the place "
                f"of the {name} that is shipped: give it another name"
            )
        return found


class BeforeTheShipped(SearchPathPlugin):
    """Hydra takes the first file of a name that it finds: the user's, then ours."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if (folder := own_folder()) is not None:
            search_path.prepend(PROVIDER, f"{Groups.scheme()}://{folder}", anchor="main")


def register() -> None:
    """Let Hydra look for options in the user's folder, too."""
    for plugin in (Groups, BeforeTheShipped):
        Plugins.instance().register(plugin)


def own_folder() -> Path | None:
    """The user's folder; None where there is none, or it is that of the checkout."""
    folder = Path.cwd() / "configs"
    return folder if folder.is_dir() and not folder.samefile(CONFIGS) else None


def find(path: str) -> Path | None:
    """The file or folder of a path within the configurations, as Hydra would find it."""
    folders = [folder for folder in (own_folder(), CONFIGS) if folder is not None]
    return next((each / path for each in folders if (each / path).exists()), None)


def say_folder() -> None:
    """Say that options are taken from the user's folder, and which of them take ours' place."""
    for source in HydraConfig.get().runtime.config_sources:
        if source.provider == PROVIDER:
            log.info(taken_from(Path(source.path)))


def taken_from(folder: Path) -> str:
    """What is to be said of the user's folder."""
    own = sorted(path.relative_to(folder) for path in folder.glob("*/**/*.yaml"))
    twice = [str(path.with_suffix("")) for path in own if (CONFIGS / path).is_file()]
    shown = twice[:_SHOWN] + [f"{len(twice) - _SHOWN} more"] * (len(twice) > _SHOWN)
    instead = f", in place of those shipped: {', '.join(shown)}" if shown else ""
    return f"options are taken from {folder}, too{instead}"
