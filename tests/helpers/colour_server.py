"""A stand-in for a simulation LLM that knows the questions of `small_run`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.helpers.openai_server import Reply, completion
from tests.helpers.runs import small_run
from tests.helpers.words import COLOURS

TOKENS = 1000  # of every reply
MODEL = "tiny"


def tell_colours(body: dict[str, Any]) -> Reply:
    """The right colour in useful documents, another one in noisy ones."""
    prompt = body["messages"][-1]["content"]
    number = int(re.findall(r"colour (\d+)", prompt)[-1])
    colour = COLOURS[2] if "NOISY" in prompt else COLOURS[number % 2]
    return completion(f"Doc 1: it is {colour}\nDoc 2: so it is", tokens=TOKENS)


def asking_run(folder: Path, url: str, *overrides: str) -> list[str]:
    """Overrides of a small run whose simulator is asked at `url`, in training and evaluation."""
    return [
        *(item for item in small_run(folder) if item != "simulator_check=off"),
        "search=simulated",
        "simulator=llm",
        f"simulator.model={MODEL}",
        f"simulator.endpoints=[{url}]",
        "simulator.max_tokens=64",
        "evaluation=same_engine",
        "module.lockstep=true",  # bit for bit, in whatever order the server replies
        *overrides,
    ]
