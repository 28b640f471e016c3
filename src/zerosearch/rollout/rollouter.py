"""Plays episodes: one coroutine per trajectory, no barrier between turns.

The only place where text meets token ids. A trajectory is the concatenation of the prompt, the
sampled ids and the encoded observations; nothing is decoded and encoded again, so what is trained
is bit for bit what was sampled (invariant 1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from zerosearch.core.errors import InputError
from zerosearch.generation.generator import CompletionRequest, Generator, Sampling
from zerosearch.policy.tokenizer import control_tokens, render_prompt
from zerosearch.rollout.environment import (
    Observation,
    Position,
    SearchEnvironment,
    show_documents,
    show_hint,
)
from zerosearch.rollout.lockstep import Lockstep
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.rollout.tags import STOP_TAGS
from zerosearch.search.engine import SearchEngine
from zerosearch.types import Question, SearchResult, Trajectory

# An observation with documents shows at least about so much of the first one, or is not made.
_DOCUMENT_TOKENS = 16


class Rollouter:
    """Samples trajectories from the policy behind a generator.

    Args:
        generator: samples tokens from the current policy.
        tokenizer: of the policy.
        settings: the episode's shape and budgets.
        chat: whether prompts go through the tokenizer's chat template.
        lockstep: every turn waits for the slowest search (see `Lockstep`).

    Raises:
        InputError: `max_observation_tokens` is too small for the tags around documents, or for the
            hint.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: PreTrainedTokenizerBase,
        settings: EpisodeSettings,
        *,
        chat: bool = False,
        lockstep: bool = False,
    ) -> None:
        self.generator = generator
        self.tokenizer = tokenizer
        self.settings = settings
        self.chat = chat
        self.lockstep = lockstep
        self.on_episode: Callable[[int], None] | None = None  # is told of each that has ended
        self.control_tokens = control_tokens(tokenizer)
        self._check_observation_budget()

    def prompt_ids(self, question: Question) -> list[int]:
        """Token ids of a question's prompt, never cut (invariant 10).

        Raises:
            InputError: longer than `max_prompt_tokens`.
        """
        prompt = self.settings.render_prompt(question, self.control_tokens)
        message = {"role": "user", "content": prompt}
        ids = render_prompt(self.tokenizer, [message], chat=self.chat)
        if len(ids) > self.settings.max_prompt_tokens:
            raise InputError(
                f"the prompt of question {question.uid!r} has {len(ids)} tokens, more than "
                f"episode.max_prompt_tokens={self.settings.max_prompt_tokens}: raise it, or drop "
                "the question from the data"
            )
        return ids

    async def rollout(
        self,
        questions: Sequence[Question],
        engine: SearchEngine,
        *,
        group_size: int,
        noise_probability: float,
        seed: int,
        step: int,
        sampling: Sampling,
        first_group: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Trajectory]:
        """Play `group_size` episodes per question, all at once.

        Args:
            questions: what is asked.
            engine: who answers queries.
            group_size: episodes per question.
            noise_probability: of each search.
            seed: of all draws, together with `step`.
            step: which of them: the policy step, the attempt of an agent, or that of evaluations.
            sampling: how tokens are drawn.
            first_group: number of the first question's group.
            on_text: of a single episode, is told what is sampled as it comes, piece by piece.

        Returns:
            [questions x group_size] trajectories, siblings next to each other; those hit by a
            failed search carry an `error` and are invalid.

        Raises:
            InputError: a prompt exceeds its budget; nothing was sampled yet.
        """
        trajectories = [
            Trajectory(
                question=question, group=first_group + index, sibling=sibling, prompt_ids=list(ids)
            )
            for index, question in enumerate(questions)
            for ids in [self.prompt_ids(question)]
            for sibling in range(group_size)
        ]
        environments = [
            SearchEnvironment(
                trajectory.question,
                engine,
                self.settings,
                noise_probability=noise_probability,
                position=Position(seed=seed, step=step, sibling=trajectory.sibling),
                special_tokens=self.control_tokens,
            )
            for trajectory in trajectories
        ]
        gate = Lockstep(len(trajectories)) if self.lockstep else None
        try:
            async with asyncio.TaskGroup() as tasks:
                for index, trajectory in enumerate(trajectories):
                    tasks.create_task(
                        self._play(index, trajectory, environments[index], sampling, gate, on_text)
                    )
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        return trajectories

    async def _play(
        self,
        index: int,
        trajectory: Trajectory,
        environment: SearchEnvironment,
        sampling: Sampling,
        gate: Lockstep | None,
        on_text: Callable[[str], None] | None,
    ) -> None:
        """Take turns until the episode ends; fills the trajectory in place."""
        while await self._take_turn(trajectory, environment, sampling, on_text):
            if gate is not None:
                await gate.arrive(index)
        if gate is not None:
            gate.leave()
        if self.on_episode is not None:
            self.on_episode(1)

    async def _take_turn(
        self,
        trajectory: Trajectory,
        environment: SearchEnvironment,
        sampling: Sampling,
        on_text: Callable[[str], None] | None,
    ) -> bool:
        """Sample one turn and insert the reply; returns whether another turn follows."""
        settings = self.settings
        told = _Told(on_text) if on_text is not None else None
        context = trajectory.prompt_ids + trajectory.response_ids
        completion = await self.generator.generate(
            context,
            CompletionRequest(
                max_new_tokens=settings.max_turn_tokens,
                sampling=sampling,
                stop=STOP_TAGS,
                seed=environment.position.seed_of(
                    trajectory.question, environment.turns_taken, "sample"
                ),
                on_text=told,
            ),
        )
        if told is not None:
            told(completion.text)
        _append(trajectory, completion.token_ids, completion.logprobs)
        trajectory.weight_versions.append(completion.weight_version)
        step = await environment.step(completion.text, ending=completion.stop_reason)
        step.turn.sampled_tokens = len(completion.token_ids)
        trajectory.turns.append(step.turn)
        if step.observation is None:
            assert step.stop is not None
            trajectory.end(step.stop, step.failure)
            return False
        used = len(context) + len(completion.token_ids)
        room = settings.max_context_tokens - settings.max_turn_tokens - used
        fitting = self._fit(step.observation, min(room, settings.max_observation_tokens))
        if fitting is None:
            trajectory.stop_reason = "context"
            return False
        text, ids = fitting
        step.turn.observation, step.turn.inserted_tokens = text, len(ids)
        if step.turn.result is not None:
            step.turn.shown = step.observation.shown_in(text)
        _append(trajectory, ids, None)
        return True

    def _fit(self, observation: Observation, budget: int) -> tuple[str, list[int]] | None:
        """The observation with as many leading documents as fit `budget` tokens.

        A first document that is too long by itself is cut short, so that a search that found
        something never reads as empty. The closing tag always stays.

        Returns:
            Text and token ids; None where the budget is too small for that.
        """
        for count in range(len(observation.documents), 0, -1):
            text = observation.render(count)
            ids = self._encode(text)
            if len(ids) <= budget:
                return text, ids
        bare = self._encode(observation.render(0))
        if not observation.documents:
            return (observation.render(0), bare) if len(bare) <= budget else None
        if len(bare) + _DOCUMENT_TOKENS > budget:
            return None
        first = self._encode(observation.documents[0])
        for keep in range(budget - len(bare), 0, -8):
            cut = str(self.tokenizer.decode(first[:keep])).rstrip("\ufffd") + " ..."
            text = observation.head + f"{cut}\n" + observation.tail
            ids = self._encode(text)
            if len(ids) <= budget:
                return text, ids
        return None

    def _check_observation_budget(self) -> None:
        settings = self.settings
        tags = show_documents(SearchResult(documents=(), requested=0), settings)
        least = {"the tags around documents": len(self._encode(tags.render())) + _DOCUMENT_TOKENS}
        if settings.invalid_hint is not None:
            hint = show_hint(settings.invalid_hint)
            least["episode.invalid_hint"] = len(self._encode(hint.render()))
        for what, tokens in least.items():
            if tokens > settings.max_observation_tokens:
                raise InputError(
                    f"episode.max_observation_tokens={settings.max_observation_tokens} is too few "
                    f"for {what}: give {tokens} or more"
                )

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


class _Told:
    """Turns a text that grows into the pieces it grows by."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._told = ""

    def __call__(self, text: str) -> None:
        if text.startswith(self._told) and text != self._told:
            self._on_text(text[len(self._told) :])
            self._told = text


def _append(trajectory: Trajectory, ids: list[int], logprobs: list[float] | None) -> None:
    """Add sampled tokens (with log-probs) or inserted ones (None)."""
    trajectory.response_ids += ids
    trajectory.sampled += [logprobs is not None] * len(ids)
    trajectory.logprobs += [0.0] * len(ids) if logprobs is None else logprobs
