"""Asks the search engine of training, before anything is trained, whether it knows the questions.

A simulator that writes about something else, a template that its model was not tuned on, or a
server that refuses would otherwise show in a curve after hours, or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng

from zerosearch.core.distributed import gather_objects
from zerosearch.core.errors import InputError
from zerosearch.search.none import NoSearch
from zerosearch.simulator.measurement import choose
from zerosearch.simulator.probe import Probed, probe, warn_where_unknown

log = logging.getLogger(__name__)

NODE = "simulator_check"


class SimulatorCheck(Callback):
    """Raises InputError on all ranks where the simulator does not suit the training questions.

    It asks on rank 0, once in the life of a run: before the first evaluation or, where there is
    none, before the first step, and before any weights are loaded; a run that goes on from a
    checkpoint asks nobody. What it found is in the module's `start_metrics` under
    `simulator_check/`, and its price among the costs of the run. An engine that cannot be
    asked for a quality (BM25, the web) is asked once per question and only has to answer.

    Args:
        questions: number of training questions; 0 asks nobody.
        answer_in_useful: least share of the searches for useful documents that find a golden
            answer, like the next ones None for no bound.
        answer_in_noisy: largest share of those for noisy documents.
        failed: largest share of searches that fail.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        questions: int,
        answer_in_useful: float | None,
        answer_in_noisy: float | None,
        failed: float | None,
    ) -> None:
        if questions < 0:
            raise InputError(f"{NODE}.questions={questions}: give a number, or 0 to ask nobody")
        self.thresholds = {
            "answer_in_useful": answer_in_useful,
            "answer_in_noisy": answer_in_noisy,
            "failed": failed,
        }
        for name, bound in self.thresholds.items():
            if bound is not None and not 0 <= bound <= 1:
                raise InputError(f"{NODE}.{name}={bound}: give a share from 0 to 1, or null")
        self.questions = questions
        self._due = questions > 0

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if trainer.state.fn == TrainerFn.TESTING and pl_module.phase != "start":
            return
        due, self._due = self._due, False
        searches = pl_module.episode.max_turns and not isinstance(pl_module.search, NoSearch)
        if not due or pl_module.resumed or not searches:
            return
        # Whatever happens on rank 0 happens on all: none waits for a verdict that never comes.
        error: Exception | None = None
        found, refusal, price = {}, "", (0, 0.0)
        if trainer.is_global_zero:
            try:
                with isolate_rng():
                    probed = self._ask(trainer, pl_module)
                    log.info(probed.sentence())
                    if probed.metrics().get("answer_in_documents") == 0:
                        log.warning(
                            "None of the documents that the search engine of training found holds "
                            "a golden answer: is its corpus about these questions? %s",
                            probed.example(),
                        )
                    refusal = self._refusal(probed)
                    others = [] if refusal else self._ask_held_out(trainer, pl_module)
                found = probed.metrics()
                prices = [each.price() for each in (probed, *others)]
                price = (sum(tokens for tokens, _ in prices), sum(usd for _, usd in prices))
            except Exception as raised:
                error, refusal = raised, str(raised) or type(raised).__name__
        found, refusal, price = gather_objects((found, refusal, price))[0]
        if error is not None:
            raise error
        pl_module.start_metrics |= {f"{NODE}/{name}": value for name, value in found.items()}
        pl_module.costs.charge(*price)
        if refusal:
            raise InputError(refusal)

    def _ask(self, trainer: Trainer, pl_module: Any) -> Probed:
        data = trainer.datamodule  # type: ignore[attr-defined]
        pairs = choose(data.training_questions(self.questions), self.questions)
        asking = probe(pl_module.search, pairs, whose="training", **_as_in_episodes(pl_module))
        return asyncio.run(asking)

    def _ask_held_out(self, trainer: Trainer, pl_module: Any) -> list[Probed]:
        """Ask the engines of the evaluations about held-out questions; warns of what they lack."""
        questions = trainer.datamodule.held_out_questions()  # type: ignore[attr-defined]
        like = _as_in_episodes(pl_module)
        asked = [
            asyncio.run(warn_where_unknown(entry.search, name, questions, whose="held-out", **like))
            for name, entry in pl_module.evaluations.items()
            if questions and not isinstance(entry.search, NoSearch)
        ]
        return [each for each in asked if each is not None]

    def _refusal(self, probed: Probed) -> str:
        """Why the run must not begin; empty where it may."""
        warnings = probed.warnings(self.thresholds, NODE)
        if not warnings:
            return ""
        return (
            f"the search engine of training does not suit the training questions: "
            f"{'; '.join(warnings)}. {probed.example()}. Give a simulator that knows these "
            "questions (simulator=prompted_7b; a tuned one needs its own prompt_template) or an "
            "engine over documents about them (search=bm25 search.engine.corpus=FILE); "
            f"{NODE}=off trains all the same"
        )


def _as_in_episodes(pl_module: Any) -> dict[str, Any]:
    """Documents and seconds of a search."""
    episode = pl_module.episode
    return {"top_k": episode.top_k, "timeout_s": episode.search_timeout_s}
