"""Whoever answers questions by searching: a model of this process, or a chat model of a server.

Training needs token ids and samples with the `Rollouter` itself. Here an episode is all that is
wanted, from one question at a time; episodes under way together share the generator's batches.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from zerosearch.generation.generator import CompletionStop, Generator
from zerosearch.generation.loading import load_to_sample
from zerosearch.policy.source import PolicySource
from zerosearch.reward.answer import extract_answer
from zerosearch.rollout.environment import Observation, Position, SearchEnvironment
from zerosearch.rollout.rollouter import Decoding, Rollouter
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.rollout.tags import ANSWER, SEARCH, STOP_TAGS
from zerosearch.search.agent import OnText, Played
from zerosearch.search.chat_client import ChatModel, Tally
from zerosearch.search.chat_servers import ChatReply
from zerosearch.search.engine import SearchEngine
from zerosearch.types import Question, SearchError, Trajectory

# Of a model whose tokenizer is not at hand: about the mean of English text.
CHARS_PER_TOKEN = 4


class LocalAgent:
    """A model of this process, loaded when first needed.

    Args:
        policy: the model.
        generator: samples from it.
        episode: the shape of an episode.
        decoding: how tokens are drawn.
        device: "auto" takes a GPU where there is one.
    """

    def __init__(
        self,
        policy: PolicySource,
        generator: Generator,
        episode: EpisodeSettings,
        decoding: Decoding | None = None,
        device: str = "auto",
    ) -> None:
        self.policy = policy
        self.generator = generator
        self.episode = episode
        self.decoding = decoding or Decoding()
        self._device = device
        self._rollouter: Rollouter | None = None

    async def play(
        self,
        question: Question,
        engine: SearchEngine,
        *,
        seed: int,
        attempt: int,
        on_text: OnText | None = None,
    ) -> Played:
        """See `Agent`."""
        [trajectory] = await self._loaded().rollout(
            [question],
            engine,
            group_size=1,
            noise_probability=0.0,
            seed=seed,
            step=attempt,
            decoding=self.decoding,
            on_text=on_text,
        )
        return Played(trajectory=trajectory, answer=extract_answer(trajectory.final_text))

    async def check(self) -> None:
        """Load the model; ValueError where it cannot be had."""
        self._loaded()

    def settings(self) -> dict[str, Any]:
        """See `Agent`."""
        decoding = self.decoding
        return {
            "model": self._fingerprint,
            "episode": self.episode.as_dict(),
            "decoding": [decoding.temperature, decoding.top_p, decoding.top_k],
        }

    @cached_property
    def _fingerprint(self) -> str:
        return self.policy.fingerprint()

    def _loaded(self) -> Rollouter:
        if self._rollouter is None:
            tokenizer = load_to_sample(self.policy, self.generator, self._device)
            self._rollouter = Rollouter(
                self.generator, tokenizer, self.episode, chat=self.policy.chat
            )
        return self._rollouter


class ChatAgent:
    """A chat model, in text alone: its turns are assistant messages, documents user messages.

    Its tokenizer is not at hand, so budgets of the episode that are not the server's business are
    kept in characters, `CHARS_PER_TOKEN` for a token.

    Args:
        chat: the model.
        episode: the shape of an episode.
        temperature: of the turns.
        turn_timeout_s: bound of one turn, all attempts together.
    """

    def __init__(
        self,
        chat: ChatModel,
        episode: EpisodeSettings,
        *,
        temperature: float = 1.0,
        turn_timeout_s: float = 120.0,
    ) -> None:
        if not temperature >= 0 or not turn_timeout_s > 0:
            raise ValueError(
                f"agent.temperature={temperature}, agent.turn_timeout_s={turn_timeout_s}: give a "
                "temperature of 0 or more, and seconds above 0"
            )
        self.chat = chat
        self.episode = episode
        self.temperature = temperature
        self.turn_timeout_s = turn_timeout_s

    async def play(
        self,
        question: Question,
        engine: SearchEngine,
        *,
        seed: int,
        attempt: int,
        on_text: OnText | None = None,
    ) -> Played:
        """See `Agent`."""
        trajectory = Trajectory(question=question, group=0, sibling=attempt, prompt_ids=[])
        position = Position(seed=seed, step=attempt, sibling=0)
        environment = SearchEnvironment(
            question, engine, self.episode, noise_probability=0.0, position=position
        )
        messages = [{"role": "user", "content": self.episode.render_prompt(question)}]
        tokens = 0
        while True:
            tally = Tally()
            try:
                reply = await self._turn(environment, messages, tally)
            except SearchError as error:
                trajectory.stop_reason = "search_failed"
                trajectory.error = f"agent {error.endpoint}: {error.reason}"
                break
            finally:
                tokens += tally.tokens
            text, ending = _read(reply)
            if on_text is not None:
                on_text(text)
            step = await environment.step(text, ending=ending)
            step.turn.sampled_tokens = reply.sampled
            trajectory.turns.append(step.turn)
            if step.observation is None:
                assert step.stop is not None
                trajectory.stop_reason, trajectory.error = step.stop, step.error
                break
            shown = _fit(step.observation, self.episode.max_observation_tokens * CHARS_PER_TOKEN)
            step.turn.observation = shown
            messages += [
                {"role": "assistant", "content": text},
                {"role": "user", "content": shown.strip()},
            ]
            if self._is_full(messages):
                trajectory.stop_reason = "context"
                break
        cost_usd = tokens * self.chat.usd_per_million_tokens / 1e6
        answer = extract_answer(trajectory.final_text)
        return Played(trajectory=trajectory, answer=answer, cost_usd=cost_usd)

    async def check(self) -> None:
        """Ask for the model; ValueError where no server has it."""
        await self.chat.check()

    def settings(self) -> dict[str, Any]:
        """See `Agent`."""
        return {
            "model": self.chat.model,
            "episode": self.episode.as_dict(),
            "temperature": self.temperature,
        }

    async def _turn(
        self, environment: SearchEnvironment, messages: list[dict[str, str]], tally: Tally
    ) -> ChatReply:
        position, turn = environment.position, environment.turns_taken
        async with self.chat.slot():
            return await self.chat.ask(
                {
                    "messages": messages,
                    "temperature": self.temperature,
                    "max_tokens": self.episode.max_turn_tokens,
                    "seed": position.seed_of(environment.question, turn, "sample") >> 32,
                    "stop": list(STOP_TAGS),
                },
                timeout_s=self.turn_timeout_s,
                tally=tally,
            )

    def _is_full(self, messages: list[dict[str, str]]) -> bool:
        held = sum(len(message["content"]) for message in messages)
        room = self.episode.max_context_tokens - self.episode.max_turn_tokens
        return held > room * CHARS_PER_TOKEN


def _read(reply: ChatReply) -> tuple[str, CompletionStop]:
    """The text of a turn and what ended it."""
    if reply.finish_reason == "length":
        return reply.text, "length"
    whole = close_tag(reply.text)
    return whole, "stop" if whole.endswith(STOP_TAGS) else "eos"


def close_tag(text: str) -> str:
    """A turn with the closing tag that servers leave out where they stop at it."""
    for opening, closing in (SEARCH, ANSWER):
        start = text.rfind(opening)
        if start >= 0 and closing not in text[start:] and start == _last_opening(text):
            return text + closing
    return text


def _last_opening(text: str) -> int:
    return max(text.rfind(SEARCH[0]), text.rfind(ANSWER[0]))


def _fit(observation: Observation, limit: int) -> str:
    """As many leading documents as fit `limit` characters, of the first one at least a part."""
    for count in range(len(observation.documents), 0, -1):
        text = observation.render(count)
        if len(text) <= limit:
            return text
    if not observation.documents:
        return observation.render()
    room = max(0, limit - len(observation.render(0)))
    return f"{observation.head}{observation.documents[0][:room].rstrip()} ...\n{observation.tail}"
