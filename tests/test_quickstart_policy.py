"""The shipped weights: in command of the episode's form, with the choice to search left open."""

from __future__ import annotations

import asyncio

import hydra
import pytest
from lightning.pytorch import Trainer

from tests.helpers.configs import compose_config
from zerosearch.data.datamodule import QADataModule
from zerosearch.generation.generator import GREEDY, Sampling
from zerosearch.training.module import SearchPolicyModule
from zerosearch.types import Question, Trajectory


@pytest.fixture(scope="module")
def module(tmp_path_factory) -> SearchPolicyModule:
    cfg = compose_config(tmp_path_factory.mktemp("run"))
    module = hydra.utils.instantiate(cfg.module)
    module.trainer = Trainer(logger=False, enable_checkpointing=False)
    module.configure_model()
    return module


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> list[Question]:
    cfg = compose_config(tmp_path_factory.mktemp("run"), "data.test_limit=24")
    data: QADataModule = hydra.utils.instantiate(cfg.data)
    data.setup("test")
    return [question for batch in data.test_dataloader() for question in batch]


def play(
    module: SearchPolicyModule, questions: list[Question], sampling: Sampling
) -> list[Trajectory]:
    rollouter = module.rollouter()

    async def run() -> list[Trajectory]:
        assert module.model is not None
        await module.generator.sync_weights(module.model)
        return await rollouter.rollout(
            questions,
            module.evaluations["bm25"].search,
            group_size=1,
            noise_probability=0.0,
            seed=0,
            step=0,
            sampling=sampling,
        )

    return asyncio.run(run())


def test_sampled_episodes_have_the_form_that_rewards_need(module, held_out) -> None:
    played = play(module, held_out, Sampling())
    answered = [each for each in played if each.stop_reason == "answer"]
    assert len(answered) >= 0.9 * len(played)
    searched = sum(bool(each.searches) for each in played)
    assert 0 < searched < len(played), "both choices are open, so there is something to learn"


def test_before_training_the_likely_choice_is_to_answer_without_searching(module, held_out) -> None:
    played = play(module, held_out, GREEDY)
    assert sum(len(each.searches) for each in played) <= 0.2 * len(played)
