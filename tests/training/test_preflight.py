"""What is found out before a run costs anything."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.engines import ScriptedEngine
from tests.helpers.models import save_policy_folder
from tests.helpers.openai_server import OpenAIServer, free_port
from tests.helpers.simulated import simulated_search
from tests.helpers.training import EPISODE, make_training
from tests.helpers.waiting import guarded
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.source import PolicySource
from zerosearch.search.bm25 import BM25Search
from zerosearch.training.evaluation import Evaluation
from zerosearch.training.preflight import check_accelerator, check_context, check_run


class CheckedEngine(ScriptedEngine):
    """Notes that it was checked; refuses with a given message."""

    def __init__(self, refusal: str | None = None) -> None:
        super().__init__(["red"])
        self.refusal = refusal
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1
        if self.refusal is not None:
            raise ValueError(self.refusal)


@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_a_gpu_that_is_asked_for_must_be_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"trainer\.accelerator={name}.*use trainer=cpu"):
        check_accelerator(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_accelerator(name)


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_other_accelerators_need_no_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_accelerator(name)


def test_a_policy_that_had_other_episodes_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = PolicySource(path=str(save_policy_folder(tmp_path)))
    saved = tmp_path / "zerosearch.json"
    for episode, warned in ((EPISODE, False), (dataclasses.replace(EPISODE, top_k=7), True)):
        saved.write_text(json.dumps({"episode": episode.as_dict()}))
        caplog.clear()
        check_run(make_training(policy=policy))
        assert ("but the policy was trained with 7" in caplog.text) == warned


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"chat": True}, ["model.chat is False but the policy was trained with True: give model."]),
        ({"chat": False}, []),
        ({"dtype": "float32"}, []),
    ],
)
def test_a_policy_that_had_other_prompts_is_warned_about_and_nothing_else(
    saved: dict[str, Any], said: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = PolicySource(path=str(save_policy_folder(tmp_path)))
    (tmp_path / "zerosearch.json").write_text(json.dumps(saved))
    check_run(make_training(policy=policy))
    found = [each.getMessage() for each in caplog.records if "model.path" in each.getMessage()]
    assert len(found) == len(said) and all(map(str.__contains__, found, said))


def test_every_engine_is_checked_those_of_evaluation_too() -> None:
    train, held_out, plain = CheckedEngine(), CheckedEngine(), ScriptedEngine(["red"])
    evaluations = {"one": Evaluation(search=held_out), "two": Evaluation(search=plain)}
    check_run(make_training(search=train, evaluations=evaluations))
    assert (train.checks, held_out.checks) == (1, 1)


@pytest.mark.parametrize("place", ["search", "evaluation"])
def test_an_engine_that_cannot_answer_stops_the_run(place: str) -> None:
    broken = CheckedEngine("search.corpus=x.jsonl is missing: download it")
    fields: dict[str, Any] = {
        "search": broken if place == "search" else ScriptedEngine(["red"]),
        "evaluations": {"own": Evaluation(search=broken)},
    }
    with pytest.raises(ValueError, match=r"search\.corpus=x\.jsonl is missing"):
        check_run(make_training(**fields))


def test_missing_weights_are_found_before_engines_are_asked(tmp_path: Path) -> None:
    engine = CheckedEngine()
    module = make_training(policy=PolicySource(path=str(tmp_path)), search=engine)
    with pytest.raises(ValueError, match=r"model\.path=.* holds no weights"):
        check_run(module)
    assert engine.checks == 0


def test_an_episode_longer_than_the_context_of_the_policy(tmp_path: Path) -> None:
    policy = PolicySource(path=str(save_policy_folder(tmp_path)))
    fits = dataclasses.replace(EPISODE, max_context_tokens=1024)
    check_context(make_training(policy=policy, episode=fits))
    long = dataclasses.replace(EPISODE, max_context_tokens=1025)
    with pytest.raises(ValueError, match=r"max_context_tokens=1025.* context of 1024 tokens"):
        check_context(make_training(policy=policy, episode=long))


class RefusingGenerator(TransformersGenerator):
    """Stands in for servers that were made for shorter episodes."""

    async def check_policy(self, source: PolicySource, *, context_tokens: int) -> None:
        raise ValueError(f"generator.endpoints={source.path}: less than {context_tokens} tokens")


def test_a_generator_that_will_not_serve_the_policy_stops_the_run() -> None:
    module = make_training(generator=RefusingGenerator())
    with pytest.raises(ValueError, match=r"generator\.endpoints=given: less than 96 tokens"):
        check_run(module)


def test_a_simulator_that_does_not_run_fails_fast_with_its_address() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    module = make_training(search=simulated_search([url], "simulator-7b"))
    with guarded(), pytest.raises(ValueError, match=rf"no simulator answers at {url}.*vllm serve"):
        check_run(module)


def test_a_simulator_that_runs_is_accepted() -> None:
    with OpenAIServer() as server:
        check_run(make_training(search=simulated_search([server.url], "simulator-7b")))
        with pytest.raises(ValueError, match=r"simulator\.model='other' is not served"):
            check_run(make_training(search=simulated_search([server.url], "other")))


def test_a_corpus_that_is_missing_is_found_before_training(tmp_path: Path) -> None:
    engine = BM25Search(tmp_path / "corpus.jsonl")
    with pytest.raises(ValueError, match=r"corpus\.jsonl"):
        check_run(make_training(search=engine))
