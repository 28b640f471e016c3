"""The cold start of a policy: it learns what others wrote in episodes, before RL.

An episode is played again by the rollouts of RL (`Replay`), so that its tokens are exactly those
of a rollout: what the policy would sample is learned, and prompt, documents and hints are read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, Positive, Seed
from zerosearch.generation.generator import Generator
from zerosearch.policy.sharding import Sharding
from zerosearch.policy.source import PolicySource
from zerosearch.reward.rubric import Rubric
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.rollout.saved_episode import warn_of_other_episode
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.training.evaluation import Evaluation, EvaluationRun
from zerosearch.tuning.encoded_examples import EncodedExample
from zerosearch.tuning.episodes import EpisodeSet
from zerosearch.tuning.records import RecordedEpisode
from zerosearch.tuning.replay import Replay, Replayed, question_of
from zerosearch.tuning.tuning_module import TuningModule

MAX_FAILED = 0.1  # share of the episodes of an evaluation that may fail by a search error

log = logging.getLogger(__name__)


class PolicyTuningModule(TuningModule[RecordedEpisode, EpisodeSet]):
    """Teaches a policy the turns of recorded episodes.

    Args:
        policy: the model that is tuned.
        generator: samples in evaluations.
        episode: the shape of an episode, which RL and use go on with.
        optimizer: from parameters, e.g. a partial of AdamW.
        schedule: from optimizer and number of updates, e.g. a partial of `warmup_schedule`.
        steps: optimizer updates of the whole run.
        evaluations: by name; each answers the held-out questions with an engine. None at all: only
            the loss is measured.
        evaluated_questions: held-out questions that they answer over all GPUs.
        tokens_per_micro_batch: padded tokens of one pass; None: of the checkpoint, or 16,384.
        logprob_chunk_tokens: rows of logits held at a time.
        gradient_clip: largest gradient norm.
        max_skipped_updates: in a row, as a loss or gradient is not finite; as many end the run.
        seed: of the evaluations.

    Raises:
        InputError: a number is out of range.
    """

    loss_name = "loss/turns"
    kind = "policy"

    def __init__(
        self,
        *,
        policy: PolicySource,
        generator: Generator,
        episode: EpisodeSettings,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[[Optimizer, int], LRScheduler],
        steps: Count,
        evaluations: Mapping[str, Evaluation] | None = None,
        evaluated_questions: Count = 64,
        tokens_per_micro_batch: Count | None = None,
        logprob_chunk_tokens: Count = 4_096,
        gradient_clip: Positive = 1.0,
        max_skipped_updates: Count = 3,
        seed: Seed = 0,
    ) -> None:
        super().__init__(
            policy=policy,
            generator=generator,
            optimizer=optimizer,
            schedule=schedule,
            steps=steps,
            seed=seed,
            tokens_per_micro_batch=tokens_per_micro_batch,
            logprob_chunk_tokens=logprob_chunk_tokens,
            gradient_clip=gradient_clip,
            max_skipped_updates=max_skipped_updates,
        )
        self.episode = episode
        self.evaluations = dict(evaluations or {})
        self.evaluated_questions = evaluated_questions
        self._replay: Replay | None = None
        self._rollouter: Rollouter | None = None

    def take(self, examples: EpisodeSet) -> None:
        """Replay every episode; one that does not go as it was recorded is an error."""
        warn_of_other_episode(self.policy_source, self.episode)
        if not examples.validation:
            raise InputError(
                f"none of the {len(examples.train)} episodes is held out, so that nothing could be "
                "validated: raise data.files.validation_share, or give data.files.validation"
            )
        every = examples.train + examples.validation
        replayed = self._replayed(every)
        wrong = [(e, r.misfit) for e, r in zip(every, replayed, strict=True) if r.misfit]
        if wrong:
            episode, misfit = wrong[0]
            raise InputError(
                f"{len(wrong)} of {len(every)} episodes are not what a rollout with this run's "
                f"settings of an episode gives. The first, {episode.place}: {misfit}. Change "
                "the setting, or leave such episodes out of the file"
            )
        encoded = [each.encoded for each in replayed]
        log.info(
            "episodes: %d tokens, %d of them learned; the longest has %d",
            sum(map(len, encoded)),
            sum(sum(each.learned) for each in encoded),
            max(map(len, encoded)),
        )

    def encode(self, examples: Sequence[RecordedEpisode]) -> list[EncodedExample]:
        """Episodes as rollouts give them, of which the sampled tokens are learned."""
        return [each.encoded for each in self._replayed(examples)]

    def _replayed(self, examples: Sequence[RecordedEpisode]) -> list[Replayed]:
        if self._replay is None:
            if self.tokenizer is None:
                self.tokenizer = self.policy_source.load_tokenizer()
            self._replay = Replay(self.tokenizer, self.episode, chat=self.policy_source.chat)
        return self._replay.play(examples)

    def load_trained(self, sharding: Sharding | None) -> nn.Module:
        """See `TrainedModule`."""
        self._replay = None  # of the checks: its tokenizer shows the date of this rank alone
        return super().load_trained(sharding)

    def measure(self, examples: Sequence[RecordedEpisode]) -> dict[str, float]:
        """Answers to held-out questions with each engine; a collective."""
        if not self.evaluations:
            return {}
        if self._rollouter is None:
            assert self.tokenizer is not None
            self.generator.bind(self.loaded_model(), self.tokenizer)
            self._rollouter = Rollouter(
                self.generator, self.tokenizer, self.episode, chat=self.policy_source.chat
            )
        share = -(-self.evaluated_questions // self.trainer.world_size)
        by_text = {each.question: question_of(each) for each in examples}
        run = EvaluationRun(self.evaluations, Rubric(), seed=self.seed, device=self.device)
        run.answer(self._rollouter, self.loaded_model(), list(by_text.values())[:share])
        found = {
            f"{name}/{metric}": value
            for name, (_, _, metrics) in run.results().items()
            for metric, value in metrics.items()
        }
        if (outage := run.outage(MAX_FAILED, "leave evaluation= out")) is not None:
            raise outage
        return found

    # -- checkpoints and export --------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["zerosearch"] |= self.policy_settings(self.episode)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.episode.check_same(checkpoint["zerosearch"]["episode"])

    def export_parts(self) -> dict[str, Any]:
        """As of a policy that was trained by RL."""
        return {"tokenizer": self.tokenizer, "extra": self.policy_settings(self.episode)}
