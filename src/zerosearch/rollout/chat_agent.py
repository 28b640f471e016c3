"""An agent that is a chat model, behind servers or in this process, and speaks text alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zerosearch.clients.chat import ChatModel, Tally
from zerosearch.clients.chat_servers import ChatReply
from zerosearch.core.controls import THINK, disarm
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import NotNegative, Positive
from zerosearch.generation.generator import CompletionStop
from zerosearch.reward.answer import extract_answer
from zerosearch.rollout.agent import OnText, PlayedEpisode
from zerosearch.rollout.environment import Observation, Position, SearchEnvironment, Step
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.rollout.tags import ANSWER, SEARCH, STOP_TAGS
from zerosearch.rollout.turn_text import in_tags
from zerosearch.search.engine import SearchEngine
from zerosearch.types import Question, SearchError, Trajectory

# Of a model whose tokenizer is not at hand: about the mean of English text.
CHARS_PER_TOKEN = 4


@dataclass(kw_only=True, slots=True)
class Talk:
    """An episode under way."""

    environment: SearchEnvironment
    messages: list[dict[str, str]]
    tokens: int = 0  # read and written so far


class ChatAgent:
    """A chat model: its turns are assistant messages, documents user messages.

    Its tokenizer is not at hand, so budgets of the episode that are not the server's business are
    kept in characters, `CHARS_PER_TOKEN` for a token. An agent that asks for searches in another
    way overrides `stop`, `marks`, `close`, `to_tags` and `show`.

    Args:
        client: the model.
        episode: the shape of an episode.
        temperature: of the turns.
        turn_timeout_s: bound of one turn, all attempts together.
    """

    stop: tuple[str, ...] = STOP_TAGS  # texts that end a turn
    marks: tuple[str, ...] = THINK  # of control tokens, those that turns may hold when read again

    def __init__(
        self,
        client: ChatModel,
        episode: EpisodeSettings,
        *,
        temperature: NotNegative = 1.0,
        turn_timeout_s: Positive = 120.0,
    ) -> None:
        if not temperature >= 0 or not turn_timeout_s > 0:
            raise InputError(
                f"agent.temperature={temperature}, agent.turn_timeout_s={turn_timeout_s}: give a "
                "temperature of 0 or more, and seconds above 0"
            )
        self.client = client
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
    ) -> PlayedEpisode:
        """See `Agent`."""
        trajectory = Trajectory(question=question, group=0, sibling=attempt, prompt_ids=[])
        position = Position(seed=seed, step=attempt, sibling=0)
        environment = SearchEnvironment(
            question, engine, self.episode, noise_probability=0.0, position=position
        )
        talk = Talk(environment=environment, messages=[])
        try:
            answer = await self.converse(talk, trajectory, on_text)
        except SearchError as error:
            answer = None
            trajectory.stop_reason = "model_failed"
            trajectory.error = f"agent {error.endpoint}: {error.reason}"
        cost_usd = talk.tokens * self.client.usd_per_million_tokens / 1e6
        texts = tuple(in_tags(turn, answer) for turn in trajectory.turns)
        return PlayedEpisode(trajectory=trajectory, answer=answer, cost_usd=cost_usd, texts=texts)

    async def converse(
        self, talk: Talk, trajectory: Trajectory, on_text: OnText | None
    ) -> str | None:
        """Take turns until the episode ends; returns the answer.

        Raises:
            SearchError: the model could not be reached.
        """
        prompt = self.episode.render_prompt(trajectory.question)
        talk.messages.append({"role": "user", "content": prompt})
        while await self._take_turn(talk, trajectory, on_text):
            continue
        return extract_answer(trajectory.final_text)

    def close(self, text: str) -> str:
        """A turn with the end that servers leave out where they stop at it."""
        return close_tag(text)

    def to_tags(self, text: str) -> str:
        """A turn with its action in our tags."""
        return text

    async def show(self, talk: Talk, step: Step) -> str:
        """What the model reads after a turn.

        Args:
            talk: up to and with that turn.
            step: its outcome, with an observation.

        Raises:
            SearchError: a model behind the text could not be reached.
        """
        assert step.observation is not None
        text = fit(step.observation, self.episode.max_observation_tokens * CHARS_PER_TOKEN)
        if step.turn.result is not None:
            step.turn.shown = step.observation.shown_in(text)
        return text.strip()

    async def ask(
        self, talk: Talk, messages: list[dict[str, str]], purpose: str = "sample"
    ) -> ChatReply:
        """One reply, with a seed from the position of the coming turn.

        Raises:
            SearchError: there was none.
        """
        environment, tally = talk.environment, Tally()
        seed = environment.position.seed_of(environment.question, environment.turns_taken, purpose)
        try:
            async with self.client.slot():
                return await self.client.ask(
                    {
                        "messages": messages,
                        "temperature": self.temperature,
                        "max_tokens": self.episode.max_turn_tokens,
                        "seed": seed >> 32,
                        "stop": list(self.stop),
                    },
                    timeout_s=self.turn_timeout_s,
                    tally=tally,
                )
        finally:
            talk.tokens += tally.tokens

    async def check(self) -> None:
        """Ask for the model; InputError where no server has it."""
        await self.client.check()

    def settings(self) -> dict[str, Any]:
        """See `Agent`."""
        return {
            "agent": type(self).__name__,
            "model": self.client.model,
            "episode": self.episode.as_dict(),
            "temperature": self.temperature,
        }

    async def _take_turn(self, talk: Talk, trajectory: Trajectory, on_text: OnText | None) -> bool:
        """One turn and what follows it; returns whether another turn follows."""
        reply = await self.ask(talk, talk.messages)
        cut = reply.finish_reason == "length"
        written = reply.text if cut else self.close(reply.text)
        text = self.to_tags(written)
        if on_text is not None:
            on_text(text)
        ending: CompletionStop = "length" if cut else "eos"
        if text.endswith(STOP_TAGS):
            ending = "stop"
        step = await talk.environment.step(text, ending=ending)
        step.turn.sampled_tokens = reply.sampled
        trajectory.turns.append(step.turn)
        if step.observation is None:
            assert step.stop is not None
            trajectory.end(step.stop, step.failure)
            return False
        talk.messages.append({"role": "assistant", "content": disarm(written, keep=self.marks)})
        step.turn.observation = await self.show(talk, step)
        talk.messages.append({"role": "user", "content": step.turn.observation})
        if self._is_full(talk.messages):
            trajectory.stop_reason = "context"
            return False
        return True

    def _is_full(self, messages: list[dict[str, str]]) -> bool:
        held = sum(len(message["content"]) for message in messages)
        room = self.episode.max_context_tokens - self.episode.max_turn_tokens
        return held > room * CHARS_PER_TOKEN


def close_tag(text: str) -> str:
    """A turn with the closing tag that servers leave out where they stop at it."""
    for opening, closing in (SEARCH, ANSWER):
        start = text.rfind(opening)
        if start >= 0 and closing not in text[start:] and start == _last_opening(text):
            return text + closing
    return text


def _last_opening(text: str) -> int:
    return max(text.rfind(SEARCH[0]), text.rfind(ANSWER[0]))


def fit(observation: Observation, limit: int) -> str:
    """As many leading documents as fit `limit` characters, of the first one at least a part."""
    for count in range(len(observation.documents), 0, -1):
        text = observation.render(count)
        if len(text) <= limit:
            return text
    if not observation.documents:
        return observation.render()
    room = max(0, limit - len(observation.render(0)))
    return f"{observation.head}{observation.documents[0][:room].rstrip()} ...\n{observation.tail}"
