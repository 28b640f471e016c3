"""The pages in Markdown show what they hold: tables, fences, links to files and headings."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.helpers.configs import ROOT
from tests.helpers.pages import MARKDOWN, PAGES

EVERY = [*PAGES, ROOT / "CHANGELOG.md"]  # whose commands are those of the past, too


def cells(row: str) -> int:
    return len(re.split(r"(?<!\\)\|", row.strip().strip("|")))


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    tokens = MARKDOWN.parse(page.read_text())
    titles = [b.content for a, b in pairwise(tokens) if a.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.name)
def test_tables_have_a_header_and_rows_of_one_width(page: Path) -> None:
    lines = page.read_text().splitlines()
    blocks = [token for token in MARKDOWN.parse(page.read_text()) if token.map and token.level == 0]
    tables = [slice(*token.map) for token in blocks if token.type == "table_open" and token.map]
    code = [slice(*token.map) for token in blocks if token.type == "fence" and token.map]
    shown = {number for part in [*tables, *code] for number in range(part.start, part.stop)}
    bare = [n + 1 for n, line in enumerate(lines) if line.startswith("|") and n not in shown]
    assert not bare, f"lines {bare} are no table: a header, or the rule below it, is missing"
    for part in tables:
        assert len({cells(row) for row in lines[part]}) == 1, f"the table in line {part.start + 1}"


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.name)
def test_code_is_closed_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    assert text.count("\n```") % 2 == 0
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not heading or heading in headings(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_that_a_page_names_stands_in_the_configuration(page: Path) -> None:
    text = page.read_text().replace("'+benchmark={2wikimultihopqa: ", "")  # no key starts so
    added = re.findall(r"(?<![\w+])\+[a-z][\w./]*=", text)
    assert not added, f"{added}: Hydra asks for a + where the configuration has no such key"


def test_settings_of_a_machine_are_not_in_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not in git")
    file = "configs/local/default.yaml"
    assert subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", file]).returncode == 0


def test_the_tree_of_the_readme_is_the_one_that_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text.partition("## The tree\n")[2].partition("```\n")[2].partition("\n```")[0]
    top = re.findall(r"^(\w+/?)", tree, re.MULTILINE)
    assert not [name for name in top if not (ROOT / name).exists()]
    groups = tree.partition("configs/")[2].partition("src/")[0]
    there = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}
    named = {name.split("/")[0] for name in re.findall(r"(\w+(?:/\w+)*)/(?= )", groups)}
    assert named == there - {"hydra", "local", "paths"}
    modules = tree.partition("src/zerosearch/\n")[2].partition("\nscripts/")[0]
    source = ROOT / "src" / "zerosearch"
    for name in re.findall(r"^  (\w+/)|\b(\w+\.py)\b", modules, re.MULTILINE):
        assert (source / "".join(name)).exists(), name
    assert {path.name for path in source.glob("[!_]*.py")} <= set(re.findall(r"\w+\.py", modules))
    packages = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    assert packages <= set(re.findall(r"^  (\w+/)", modules, re.MULTILINE))


def test_the_page_of_gpus_has_every_file_with_tests_for_them() -> None:
    named = re.findall(r"`(tests/\S+\.py)` \|", (ROOT / "docs" / "gpu.md").read_text())
    there = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"\b(?:everywhere|on_gpus)\(", path.read_text())
    ]
    assert sorted(named) == sorted(there)


# A file by its path in the repository, or by its room and name as the code's readers call it.
NAMED = re.compile(r"`([\w-]+/[\w./-]+\.(?:py|yaml|sh|json|j2))`")
READERS_OWN = {
    "configs/local/default.yaml",
    "configs/data/mine.yaml",
    "configs/search/library.yaml",
    "my_configs/search/library.yaml",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = {each for each in NAMED.findall(page.read_text()) if "NAME" not in each} - READERS_OWN
    bases = (ROOT, ROOT / "src", ROOT / "src" / "zerosearch", ROOT / "docs", ROOT / "tests")
    assert [each for each in named if not any((base / each).exists() for base in bases)] == []


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    linked = re.findall(r"\]\(([^)#\s]+)", index.read_text())
    named = {(index.parent / target).resolve() for target in linked if "://" not in target}
    assert {*EVERY} <= named | {index}


def test_a_term_stands_in_the_glossary_once() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| .+ \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE
    )
    terms = [term for row in rows if row not in ("term", "---") for term in row.split(", ")]
    assert len(terms) > 60
    assert len({*terms}) == len(terms)


def test_the_workflow_calls_what_a_change_must_pass() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())
    [job] = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    [python] = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={python['python-version']}"
