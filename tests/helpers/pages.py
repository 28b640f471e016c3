"""Commands as the pages, the Makefile and the configuration show them to people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tests.helpers.configs import CONFIGS, ROOT
from zerosearch.cli import NAMES

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMENTED = [*sorted(CONFIGS.rglob("*.yaml")), ROOT / "scripts" / "train.sbatch", ROOT / "Makefile"]
MARKDOWN = MarkdownIt("commonmark").enable("table")
COMMAND = re.compile(r"([A-Z]+=\S* )?(make [a-z]|(python|pip|torchrun|sbatch|curl|zerosearch) )")

TARGETS = re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
_IN_TICKS = re.compile(r"`([^`]+)`")
# in a comment or a value a command goes on to the end of the line, or to what stands beside it
_STARTS = rf"make (?:{'|'.join(TARGETS)})|zerosearch (?:{'|'.join(NAMES)})|sbatch --nodes=."
_BARE = re.compile(rf"(?<![\w`])((?:{_STARTS}) .*|make [a-z-]+$)")
_BESIDE = re.compile(r" {3,}| +\(")

# What a reader puts in, so that the command is complete. Nothing else in capitals is taken.
STAND_INS = {
    "seed=N": "seed=1",
    "experiment=NAME": "experiment=quickstart",
    "algorithm=NAME": "algorithm=rloo",
    "hparams_search=NAME": "hparams_search=reliability",
    "model=NAME": "model=quickstart",
    "--rdzv-id=NAME": "--rdzv-id=mine",
    "runs/NAME": "runs/first",
    "data name=NAME": "data name=wiki18",
    "simulator=NAME": "simulator=prompted_7b",
    "simulator=PATH": "simulator=logs/tune/latest/simulator",
    "simulator.folder=PATH": "simulator.folder=logs/tune/latest/simulator",
    "search=library": "search=library hydra.searchpath=[my_configs]",  # docs/custom_search.md
    "${simulator.prompt_template}": "prompt.j2",
    "RUN": "logs/train/latest",
    "URL": "http://127.0.0.1:8000/v1",
    "FOLDER": "mine",
    "FILE": "mine.jsonl",
    "NAME": "mine",
    "COMMAND": "train",
    "CHECKPOINT": "logs/train/latest/checkpoints/last.ckpt",
    "ROWS": "rows",
    "EPISODES": "episodes",
    "LOG": "log",
    **dict.fromkeys(("HOST", "SIMULATOR", "RETRIEVER", "NODE", "NODE2"), "127.0.0.1"),
}
_PLACEHOLDER = re.compile("|".join(rf"(?<![\w.-]){re.escape(text)}(?![\w=])" for text in STAND_INS))
_LEFT = re.compile(r"(?<![\w.-])(?:[A-Z][A-Z0-9]+|N)(?![\w=,-])|(?<!\")\.\.\.")
_REMARK = re.compile(r"\s+# .*")


@dataclass(frozen=True)
class Shown:
    """A command of a page.

    Args:
        where: page and line.
        text: as it stands there, in one line and without the remark behind it.
    """

    where: str
    text: str

    def filled(self) -> str:
        """The command with something in the place of each placeholder.

        Raises:
            ValueError: there is nothing for one of them.
        """
        text = _PLACEHOLDER.sub(lambda found: STAND_INS[found[0]], self.text)
        if (left := _LEFT.search(text)) is not None:
            raise ValueError(f"{self.where}: nothing stands in for {left[0]} in `{self.text}`")
        return text


def commands_of(page: Path) -> list[Shown]:
    """All commands of a page in Markdown: of its code blocks and of code in its text."""
    name, found = page.name, []
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        first = token.map[0] + 1 if token.map else 0
        if token.type in ("fence", "code_block") and not token.info:
            found += list(_lines_of(token.content, name, first + (token.type == "fence")))
        for child in token.children or ():
            if child.type == "code_inline" and COMMAND.match(child.content):
                found.append(Shown(f"{name}:{first}", child.content))
    return found


def commands_of_comments(file: Path) -> list[Shown]:
    """All commands in comments of a file, and in values that name one."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        said = re.search(r"#:? .*|^ *(use|made_by): .*|#   .*", line)
        if said is None or line.startswith("#SBATCH"):
            continue
        text = said[0]
        shown = [item for item in _IN_TICKS.findall(text) if COMMAND.match(item)]
        if bare := _BARE.search(_IN_TICKS.sub("", text)):
            shown.append(_BESIDE.split(bare[1])[0].strip())
        where = f"{file.relative_to(ROOT)}:{number}"
        found += [Shown(where, item) for item in shown]
    return found


def overrides_of(page: Path) -> list[Shown]:
    """Code in the text of a page that is made of overrides alone."""
    found = []
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{token.map[0] + 1 if token.map else 0}"
        for child in token.children or ():
            words = child.content.split() if child.type == "code_inline" else []
            if words and all(re.match(r"[a-z][\w./]*=", word) for word in words):
                found.append(Shown(where, child.content))
    return found


def _lines_of(block: str, name: str, first: int) -> Iterator[Shown]:
    """The commands of a code block, if it is one of commands; else nothing."""
    lines = block.splitlines()
    if not lines or not COMMAND.match(lines[0].replace("export ", "")):
        return
    number = 0
    while number < len(lines):
        start, text = number, lines[number]
        while text.endswith("\\"):
            number += 1
            text = text[:-1].rstrip() + " " + lines[number].lstrip()
        number += 1
        if COMMAND.match(text):
            yield Shown(f"{name}:{first + start}", _REMARK.sub("", text))
        elif text[:1].isalpha() and not text.startswith("export "):
            raise ValueError(f"{name}:{first + start}: `{text}` is no command that is known here")
