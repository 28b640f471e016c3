"""What pyproject.toml cannot say: `configs/` of a checkout's top is in the package of a wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

LOCAL = Path("configs", "local")  # settings of one machine
CONFIGS = [file for file in sorted(Path("configs").rglob("*.yaml")) if LOCAL not in file.parents]


class BuildWithConfigs(build_py):
    """Copies `configs/` beside the modules; an editable install reads it where it is."""

    def build_package_data(self) -> None:
        super().build_package_data()
        for file in CONFIGS:
            target = Path(self.build_lib, "zerosearch", file)
            self.mkpath(str(target.parent))
            self.copy_file(str(file), str(target))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *map(str, CONFIGS)]


setup(cmdclass={"build_py": BuildWithConfigs})
