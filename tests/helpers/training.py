"""A training module over the policy of a few words, and runs of it in milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.helpers.engines import ScriptedEngine
from tests.helpers.policy_stub import make_trainer
from tests.helpers.words import make_word_model, make_word_tokenizer
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.data.datamodule import QADataModule
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.source import PolicySource
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.training.evaluation import Evaluation
from zerosearch.training.module import SearchPolicyModule
from zerosearch.training.schedule import warmup_schedule
from zerosearch.training.step_record import StepRecord
from zerosearch.types import Question, Trajectory, Turn


class GivenPolicy(PolicySource):
    """A source whose model and tokenizer are at hand instead of in files."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(path="given")
        self.given = model
        self.tokenizer = tokenizer

    def check(self) -> None:
        """Nothing can be missing."""

    def load_config(self):
        return self.given.config

    def load_model(self, *, trained: bool = True) -> PreTrainedModel:
        return self.given

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        return self.tokenizer


class CopiedPolicy(GivenPolicy):
    """Every model that is loaded is another one, as from files."""

    def load_model(self, *, trained: bool = True) -> PreTrainedModel:
        return copy.deepcopy(self.given)


class Listed:
    """A source of given questions, for `QADataModule`."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.label = "listed"
        self.weight = 1.0
        self._questions = list(questions)

    def load(self) -> list[Question]:
        return self._questions


class Records(Callback):
    """Keeps what every policy step left behind."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.steps.append(pl_module.latest)


class Replay:
    """Stands in for the rollouter: every step gets the same trajectories."""

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        self._trajectories = list(trajectories)

    async def rollout(self, *_: Any, **__: Any) -> list[Trajectory]:
        return self._trajectories


EPISODE = EpisodeSettings(
    prompt_template="plain",
    max_turns=1,
    top_k=1,
    max_prompt_tokens=16,
    max_turn_tokens=6,
    max_observation_tokens=24,
    max_context_tokens=96,
)


def make_questions(count: int, golden: str = "red", **metadata: Any) -> list[Question]:
    return [
        Question(uid=f"q:{n}", text=f"colour {n}", golden_answers=(golden,), metadata=metadata)
        for n in range(count)
    ]


def make_turns_trajectory(
    sampled: Sequence[Sequence[int]],
    inserted: Sequence[Sequence[int]] = (),
    *,
    text: str = "<answer> red </answer>",
    golden: str = "red",
    **fields: Any,
) -> Trajectory:
    """An episode of given tokens: sampled turns with inserted ones between them."""
    ids: list[int] = []
    flags: list[bool] = []
    for turn, tokens in enumerate(sampled):
        ids += [*tokens, *(inserted[turn] if turn < len(inserted) else ())]
        flags += [True] * len(tokens) + [False] * (len(ids) - len(flags) - len(tokens))
    return Trajectory(
        question=Question(uid="q", text="colour", golden_answers=(golden,)),
        prompt_ids=[12, 1],
        response_ids=ids,
        sampled=flags,
        logprobs=[-1.0 if flag else 0.0 for flag in flags],
        turns=[Turn(text=text, action="answer")],
        **{"group": 0, "sibling": 0, **fields},
    )


def make_training(model: PreTrainedModel | None = None, **fields: Any) -> SearchPolicyModule:
    """A module that plays short episodes.

    Args:
        model: the policy.
        fields: arguments of `SearchPolicyModule`; and `module`, a subclass to make instead.
    """
    search = fields.pop("search", None) or ScriptedEngine(["red or blue"])
    return fields.pop("module", SearchPolicyModule)(
        **{
            "policy": GivenPolicy(model or make_word_model(), make_word_tokenizer()),
            "algorithm": Algorithm(group_size=4),
            "generator": TransformersGenerator(),
            "search": search,
            "episode": EPISODE,
            "optimizer": partial(torch.optim.SGD, lr=0.1),
            "schedule": warmup_schedule,
            "evaluations": {"same": Evaluation(search=search)},
            "policy_steps": 1,
            **fields,
        }
    )


def make_data(
    questions: Sequence[Question], held_out: Sequence[Question] = (), **fields: Any
) -> QADataModule:
    """All questions in every step, `held_out` for validation and test."""
    kept = [Listed(held_out)] if held_out else []
    return QADataModule(
        **{
            "questions_per_step": len(questions),
            "train": [Listed(questions)],
            "validation": kept,
            "test": kept,
            **fields,
        }
    )


def fit(
    module: SearchPolicyModule,
    questions: Sequence[Question],
    *callbacks: Callback,
    **trainer: Any,
) -> list[StepRecord]:
    """Train on the questions, all of them in every step; returns the record of each step."""
    records = Records()
    make_trainer(
        module.policy_steps, callbacks=[records, *callbacks], val_every=None, **trainer
    ).fit(module, make_data(questions))
    return records.steps


def weights(module: SearchPolicyModule) -> dict[str, torch.Tensor]:
    """A copy of the policy's weights."""
    assert module.model is not None
    return {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
