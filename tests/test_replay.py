"""A whole run that was recorded, repeated with the network off: bit for bit, and at no cost."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import compose_config
from tests.helpers.openai_server import OpenAIServer, Reply, completion
from tests.helpers.runs import computed, read_metrics, small_run
from tests.helpers.words import COLOURS
from zerosearch.commands.train import train
from zerosearch.core.runs import Summary

SPENT = ("cost/", "search/cached", "search/attempts", "search/tokens")


def answer_by_chance(_: dict[str, Any]) -> Reply:
    """Another reply to the same request every time, after another time."""
    chance = random.SystemRandom()
    lines = [
        f"Doc {number}: {' '.join(chance.choices(COLOURS, k=chance.randint(1, 8)))}"
        for number in (1, 2)
    ]
    return completion("\n".join(lines), delay_s=chance.uniform(0.0, 0.03))


@dataclass(kw_only=True, slots=True)
class Recorded:
    """A run whose searches were kept, and the server that answered them, gone since."""

    settings: list[str]
    folder: Path
    asked: int


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # what runs set for their process is undone
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "0")
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    base = tmp_path_factory.mktemp("replay")
    with OpenAIServer(answer_by_chance, models=["tiny"]) as server:
        settings = [
            *small_run(base),
            "policy_steps=3",
            "simulator=llm",
            "simulator.model=tiny",
            f"simulator.endpoints=[{server.url}]",
            "evaluation=same_engine",
            "module.lockstep=true",
            f"search.cache_folder={base / 'searches'}",
        ]
        folder = run(base / "recorded", *settings, "search.cache=use")
        return Recorded(settings=settings, folder=folder, asked=len(server.received))


@pytest.fixture
def network_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("somebody wants to connect")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)


def run(folder: Path, *overrides: str) -> Path:
    folder.mkdir()
    summary = Summary(folder)
    train(compose_config(folder, *overrides), summary)
    summary.write()
    return folder


def not_spent(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in row.items()
        if not any(part in name for part in (*SPENT, "latency"))
    }


def searches(folder: Path) -> list[Any]:
    """Queries and documents of all episodes, as the transcripts show them."""
    lines = [
        json.loads(line)
        for path in sorted((folder / "transcripts").rglob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return [[(t["text"], t.get("observation")) for t in line["turns"]] for line in lines]


@pytest.mark.usefixtures("network_off")
def test_a_replay_equals_the_recorded_run_bit_for_bit(recorded: Recorded, tmp_path: Path) -> None:
    nobody = ["simulator.endpoints=[]", "simulator.launch=true"]
    replayed = run(tmp_path / "replayed", *recorded.settings, *nobody, "search.cache=replay")

    first, second = read_metrics(recorded.folder), read_metrics(replayed)
    assert len(first) == 3 and len(first[0]) > 40
    assert [not_spent(computed(row)) for row in second] == [
        not_spent(computed(row)) for row in first
    ]
    assert searches(replayed) == searches(recorded.folder)
    folders = (replayed, recorded.folder)
    weights = [(folder / "policy" / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in folders)
    same = {name for name in not_spent(other) if name.startswith(("start/", "test/"))}
    assert len(same) > 40 and all(one[name] == other[name] for name in same)


@pytest.mark.usefixtures("network_off")
def test_a_replay_costs_nothing(recorded: Recorded, tmp_path: Path) -> None:
    replayed = run(tmp_path / "replayed", *recorded.settings, "search.cache=replay")
    first, second = read_metrics(recorded.folder), read_metrics(replayed)
    assert float(first[-1]["cost/calls"]) > 0
    assert float(second[-1]["cost/calls"]) == float(second[-1]["cost/usd"]) == 0
    assert float(second[-1]["cost/searches"]) == float(first[-1]["cost/searches"]) > 0
    assert {row["search/cached"] for row in second if float(row["rollout/searches"])} == {"1.0"}


def test_a_run_with_a_warm_cache_asks_nobody_either(recorded: Recorded, tmp_path: Path) -> None:
    # its server is checked, so there must be one
    with OpenAIServer(answer_by_chance, models=["tiny"]) as server:
        endpoint = f"simulator.endpoints=[{server.url}]"
        again = run(tmp_path / "again", *recorded.settings, endpoint, "search.cache=use")
        assert not server.received and recorded.asked
    rows = zip(read_metrics(again), read_metrics(recorded.folder), strict=True)
    assert all(not_spent(computed(a)) == not_spent(computed(b)) for a, b in rows)


@pytest.mark.usefixtures("network_off")
def test_a_replay_of_another_run_says_what_to_do(recorded: Recorded, tmp_path: Path) -> None:
    other = ["seed=1", "test=false", "search.cache=replay"]
    with pytest.raises(RuntimeError) as error:
        run(tmp_path / "other", *recorded.settings, *other)
    said = str(error.value)
    assert "no answer to the query" in said and "search.cache=use" in said and "seed" in said
    assert str(recorded.folder.parent / "searches") in said
