"""What each spawned process of the multi-rank test of `SimulatorCheck` runs."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch.plugins.environments import LightningEnvironment

from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import make_data, make_questions, make_training
from zerosearch.callbacks.simulator_check import SimulatorCheck
from zerosearch.types import Document, SearchRequest, SearchResult


class Simulator:
    """Useful documents hold the answer where it is a good one; a broken one cannot be asked."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.asked = 0

    async def search(self, request: SearchRequest) -> SearchResult:
        self.asked += 1
        if self.kind == "broken":
            raise RuntimeError("the engine is broken")
        noisy = request.noise_probability == 1.0
        text = "red" if self.kind == "good" and not noisy else "nothing"
        return SearchResult(documents=(Document(text=text),), requested=1, noisy=noisy, tokens=10)


def check_on_rank(rank: int, world_size: int, folder: str) -> None:
    """Fit with a simulator of each kind, and note how it went and how often it was asked."""
    found: dict[str, object] = {"asked": {}}
    for kind in ("refused", "broken", "good"):
        engine = Simulator(kind)
        check = SimulatorCheck(questions=4, answer_in_useful=0.5, answer_in_noisy=0.5, failed=0.5)
        module = make_training(search=engine, policy_steps=1)
        trainer = make_trainer(
            0,  # nothing but the check
            callbacks=[check],
            val_every=None,
            devices=world_size,
            strategy="ddp",
            plugins=[LightningEnvironment()],
        )
        try:
            trainer.fit(module, make_data(make_questions(4)))
            said: object = [
                module.start_metrics["simulator_check/answer_in_useful"],
                module.costs.totals["cost/tokens"],
            ]
        except (ValueError, RuntimeError) as error:
            said = str(error)
        found[kind] = said
        found["asked"] |= {kind: engine.asked}  # type: ignore[operator]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
