"""What docs/architecture.md says is there: paths, frames, invariants and defects with tests."""

from __future__ import annotations

import ast
import re
import traceback
from pathlib import Path

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.training import fit, make_questions, make_training
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.losses import TokenLoss, ppo_clip

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SOURCE, TESTS = ROOT / "src" / "zerosearch", ROOT / "tests"
SECTIONS = {"invariant": "Invariants", "defect": "Defects of the public reference code"}
FRAMES = re.findall(r"^\| `(\S+\.py)` \| `(\w+)` \|", PAGE, re.MULTILINE)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def listed(kind: str) -> dict[int, list[str]]:
    """Files with tests by the number of an invariant or a defect, as the page has them."""
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", section(SECTIONS[kind]), re.MULTILINE)
    return {int(number): re.findall(r"`(\S+)`", files) for number, files in rows}


def cited(kind: str) -> dict[int, set[str]]:
    """Files whose tests have the number in their names."""
    found: dict[int, set[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        names = " ".join(re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8")))
        for number in re.findall(rf"{kind}_(\d\d)_", names):
            found.setdefault(int(number), set()).add(path.relative_to(TESTS).as_posix())
    return found


@pytest.mark.parametrize(("kind", "count"), [("invariant", 20), ("defect", 16)])
def test_each_has_tests_of_its_number_and_each_number_stands_on_the_page(
    kind: str, count: int
) -> None:
    rows, found = listed(kind), cited(kind)
    assert list(rows) == [*range(1, count + 1)]
    assert found.keys() <= rows.keys()
    for number, files in rows.items():
        assert files, number
        missing = {*files} - found.get(number, set())
        assert not missing, f"no test_{kind}_{number:02}_... in {sorted(missing)}"


def test_numbers_are_cited_in_one_form() -> None:
    """Two digits and one number each, so that `-k invariant_06` finds all; in words elsewhere."""
    for path in TESTS.rglob("test_*.py"):
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8")):
            numbers = re.findall(r"(?:invariant|defect)_\d+_?(?:and_\d+)?", name)
            assert all(re.fullmatch(r"\w+_\d\d_?", each) for each in numbers), f"{path}: {name}"
    for path in SOURCE.rglob("*.py"):
        for number in re.findall(r"\binvariants? (\d+)", path.read_text(encoding="utf-8")):
            assert int(number) in listed("invariant"), path


def test_paths_of_the_page_are_there() -> None:
    paths = re.findall(r"(?<![\w/{])((?:\w+/)*\w+\.(?:py|yaml|md))\b", PAGE)
    assert len(paths) > 80
    own = {"my_NAME.py", "NAME.yaml", "NAME.py"}  # of the reader
    bases = (SOURCE, ROOT, ROOT / "docs", TESTS)
    missing = [
        path
        for path in paths
        if path.rpartition("/")[2] not in own and not any((base / path).exists() for base in bases)
    ]
    assert not missing


def test_the_frames_of_the_page_are_functions_of_their_files() -> None:
    for file, name in FRAMES:
        tree = ast.parse((SOURCE / file).read_text(encoding="utf-8"))
        assert name in {getattr(node, "name", None) for node in ast.walk(tree)}, f"{file}: {name}"


def test_a_policy_step_reaches_the_loss_by_the_frames_of_the_page() -> None:
    seen: list[tuple[str, str]] = []

    def loss(*tensors, **options) -> TokenLoss:
        if tensors[0].requires_grad and not seen:
            for frame in traceback.extract_stack():
                file = Path(frame.filename)
                if SOURCE in file.parents:
                    seen.append((file.relative_to(SOURCE).as_posix(), frame.name))
        return ppo_clip(*tensors, **options)

    fit(make_training(algorithm=Algorithm(group_size=4, loss=loss)), make_questions(1))
    step = ("training/module.py", "training_step")
    assert seen[seen.index(step) :] == FRAMES[FRAMES.index(step) :]
