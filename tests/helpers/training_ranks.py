"""One policy step on any number of ranks, and what each spawned process of its test runs.

Questions differ so much in length that rank 0 needs more micro-batches than rank 1, and on rank 1
a question's searches fail.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment

from tests.helpers.engines import ScriptedEngine
from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import CopiedPolicy, make_data, make_training
from tests.helpers.words import COLOURS, make_word_model, make_word_tokenizer
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.critic import CriticSettings
from zerosearch.algorithms.values import generalized_advantages
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.training.module import SearchPolicyModule
from zerosearch.training.schedule import warmup_schedule
from zerosearch.types import Question, SearchRequest

RANKS = 2
IN_ORDER = 5  # seed of the data that leaves the questions as they are listed
BUDGET = 60  # padded tokens of a micro-batch
WATCHED = 9  # trajectories that a rank sampled and wants the entropies of, whoever trains on them
QUESTIONS = [
    Question(
        uid=f"q:{n}", text=("long " * 10 if n < 2 else "short ") + str(n), golden_answers=("red",)
    )
    for n in range(4)
]


class CountingModule(SearchPolicyModule):
    """Counts its backward passes; in one step the last rank's losses are no numbers."""

    backward_passes = 0
    poisoned_step: int | None = None

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        self.backward_passes += 1
        last = self.global_rank == self.trainer.world_size - 1
        if last and self.policy_step == self.poisoned_step:
            loss = loss * torch.nan
        super().manual_backward(loss, *args, **kwargs)


GRPO = Algorithm(group_size=6, kl_coefficient=0.1, entropy_coefficient=0.01)
PPO = Algorithm(
    group_size=6,
    advantage=generalized_advantages,
    critic=CriticSettings(optimizer=partial(torch.optim.SGD, lr=0.3), schedule=warmup_schedule),
    kl_in="reward",
    kl_kind="k1",
    kl_coefficient=0.1,
    mini_batches=1,
    inner_epochs=2,
)


def train_rank(
    world_size: int,
    *,
    algorithm: Algorithm = GRPO,
    lag: int = 0,
    steps: int = 1,
    poisoned_step: int | None = None,
    **trainer: Any,
) -> dict[str, Any]:
    """Weights, metrics and number of backward passes of some steps with all questions."""

    def documents(request: SearchRequest) -> list[str]:
        long = request.question.startswith("long")
        return [" ".join(COLOURS * (4 if long else 1))]

    module = make_training(
        policy=CopiedPolicy(make_word_model(), make_word_tokenizer()),
        module=CountingModule,
        search=ScriptedEngine(documents, failing=(QUESTIONS[3].text,)),
        algorithm=algorithm,
        optimizer=partial(torch.optim.SGD, lr=1.0),
        tokens_per_micro_batch=BUDGET,
        gradient_clip=1e9,
        max_failed_share=0.9,
        generator=TransformersGenerator(copy_weights=True),
        lag=lag,
        policy_steps=steps,
    )
    assert isinstance(module, CountingModule)
    module.poisoned_step = poisoned_step
    module.watched = WATCHED
    learner = make_trainer(steps, callbacks=[], val_every=None, devices=world_size, **trainer)
    learner.fit(module, make_data(QUESTIONS, seed=IN_ORDER))
    assert module.latest is not None
    lengths = [len(t.prompt_ids + t.response_ids) for t in module.latest.trajectories]
    return {
        "weights": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "metrics": module.train_metrics,
        "backward_passes": module.backward_passes,
        "lengths": lengths,
        "watched": sum(t.valid for t in module.latest.trajectories[:WATCHED]),
        "entropies": {str(key): each for key, each in module.latest.entropies.items()},
        "failed": sum(not t.valid for t in module.latest.trajectories),
    }


def run_rank(rank: int, world_size: int, folder: str) -> None:
    """Train as one of the ranks over gloo and save the result."""
    ddp = {"strategy": "ddp", "plugins": [LightningEnvironment()]}
    results = {
        "one step": train_rank(world_size, **ddp),
        "lagging": train_rank(world_size, lag=1, steps=3, **ddp),
        "skipping": train_rank(world_size, steps=2, poisoned_step=0, **ddp),
        "critic": train_rank(
            world_size,
            algorithm=PPO,
            steps=2,
            **{**ddp, "strategy": "ddp_find_unused_parameters_true"},
        ),
    }
    torch.save(results, Path(folder) / f"{rank}.pt")
