"""Recorded episodes as token ids, by playing them again with the rollouts of RL.

The generator of such a rollout gives out the recorded text of each turn, the engine the recorded
documents. Prompt, tags, budgets, cut documents and hints thus come from the code that RL runs, and
a model is tuned on the very tokens that it would read and sample (invariant 1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from zerosearch.core.controls import THINK
from zerosearch.core.errors import InputError
from zerosearch.generation.generator import GREEDY, Completion, CompletionRequest
from zerosearch.generation.stops import StopMatcher, decode
from zerosearch.reward.answer import extract_answer
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.rollout.tags import ANSWER, SEARCH, STOP_TAGS
from zerosearch.tuning.encoded_examples import EncodedExample
from zerosearch.tuning.records import RecordedEpisode
from zerosearch.types import Question, SearchRequest, SearchResult, Shown, Trajectory


@dataclass(kw_only=True, slots=True, frozen=True)
class Replayed:
    """One episode, played again."""

    encoded: EncodedExample  # what the policy would sample is learned
    misfit: str  # why it did not go as recorded; "" where it did


class Replay:
    """Plays recorded episodes.

    Args:
        tokenizer: of the policy.
        episode: the settings that RL goes on with.
        chat: whether prompts go through the chat template.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, episode: EpisodeSettings, *, chat: bool
    ) -> None:
        self._turns = _RecordedTurns(tokenizer, episode)
        self._rollouter = Rollouter(self._turns, tokenizer, episode, chat=chat)
        tags = {*THINK, *SEARCH, *ANSWER}  # which a policy may have as tokens of their own
        controls = [each for each in self._rollouter.control_tokens if each not in tags]
        self._turns.control_tokens = tuple(controls)

    def play(self, episodes: Iterable[RecordedEpisode]) -> list[Replayed]:
        """One after the other; a misfit is told, not raised."""

        async def run() -> list[Replayed]:
            return [await self._play(each) for each in episodes]

        return asyncio.run(run())

    async def _play(self, record: RecordedEpisode) -> Replayed:
        try:
            self._turns.begin(record)
            [trajectory] = await self._rollouter.rollout(
                [question_of(record)],
                self._turns,
                group_size=1,
                noise_probability=0.0,
                seed=0,
                step=0,
                sampling=GREEDY,
            )
        except InputError as error:  # the prompt is too long, or a turn is none that is sampled
            return Replayed(encoded=EncodedExample(ids=[], learned=[]), misfit=str(error))
        return Replayed(
            encoded=EncodedExample(
                ids=trajectory.prompt_ids + trajectory.response_ids,
                learned=[False] * len(trajectory.prompt_ids) + trajectory.sampled,
            ),
            misfit=self._turns.left_over(trajectory),
        )


def question_of(record: RecordedEpisode) -> Question:
    """The question of a recorded episode."""
    return Question(uid=record.id, text=record.question, golden_answers=record.golden_answers)


class _RecordedTurns:
    """Generator and search engine of one recorded episode at a time."""

    own_weights = True
    weight_version = 0

    def __init__(self, tokenizer: PreTrainedTokenizerBase, episode: EpisodeSettings) -> None:
        self.control_tokens: tuple[str, ...] = ()
        self._tokenizer = tokenizer
        self._episode = episode
        self._stops = StopMatcher(tokenizer, STOP_TAGS)

    def begin(self, record: RecordedEpisode) -> None:
        """Play another one from its first turn."""
        if held := self._control_token(record.question):
            raise InputError(f"the question holds {held!r}, a control token of the policy")
        self._record = record
        self._taken = self._searched = 0

    async def generate(self, prompt_ids: list[int], request: CompletionRequest) -> Completion:
        """The next text, as the policy would sample it: up to a closing tag, or else with EOS.

        Raises:
            InputError: there is none, or it is none that the policy would sample.
        """
        texts = self._record.texts
        if self._taken == len(texts):
            raise InputError(
                f"the record ends with turn {len(texts)}, after which the episode would go on: it "
                "was cut, or played with other settings"
            )
        text = texts[self._taken]
        self._taken += 1
        turn = f"turn {self._taken}"
        if held := self._control_token(text):
            raise InputError(f"{turn} holds {held!r}, a control token of the policy")
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        end = next((n for n in range(1, len(ids) + 1) if self._stops.completes(ids[:n], 0)), None)
        if end is not None and (rest := decode(self._tokenizer, ids[end:])).strip():
            raise InputError(f"{turn} goes on after its closing tag, with {rest!r:.60}")
        ids = ids[:end] if end is not None else [*ids, self._eos_id]
        if len(ids) > request.max_new_tokens:
            raise InputError(
                f"{turn} has {len(ids)} tokens, more than "
                f"episode.max_turn_tokens={request.max_new_tokens}"
            )
        return Completion(
            token_ids=ids,
            logprobs=[0.0] * len(ids),
            text=text if end is None else decode(self._tokenizer, ids),
            stop_reason="eos" if end is None else "stop",
            weight_version=0,
        )

    async def search(self, request: SearchRequest) -> SearchResult:
        """The documents that the search of this turn found.

        Raises:
            InputError: another search was recorded, or none.
        """
        if self._searched == len(self._record.searches):
            raise InputError(f"the search of turn {self._taken} was not recorded")
        recorded = self._record.searches[self._searched]
        self._searched += 1
        if recorded.query != request.query:
            raise InputError(
                f"turn {self._taken} asks {request.query!r:.80}, and the search recorded there is "
                f"{recorded.query!r:.80}"
            )
        return SearchResult(documents=recorded.documents, requested=request.top_k)

    def left_over(self, trajectory: Trajectory) -> str:
        """Why an episode has ended before its record does, or with another answer; "": it has not.

        Args:
            trajectory: of the record.
        """
        record, settings, stop = self._record, self._episode, trajectory.stop_reason
        turns = len(record.texts)
        if self._taken < turns or self._searched < len(record.searches):
            ended = f"it ends after turn {self._taken} of {turns}, by "
            if stop == "context":
                return f"{ended}episode.max_context_tokens={settings.max_context_tokens}"
            if stop == "max_turns":
                return f"{ended}episode.max_turns={settings.max_turns}"
            if stop == "answer":
                return f"{ended}the answer there"
            return f"{ended}a turn without an action (episode.invalid_hint={settings.invalid_hint})"
        answer = extract_answer(trajectory.final_text)
        if (answer or "") != (record.answer or "").strip():
            return f"it answers {answer!r:.80}, and the answer on record is {record.answer!r:.80}"
        searched = [turn for turn in trajectory.turns if turn.result is not None]
        for number, (turn, search) in enumerate(zip(searched, record.searches, strict=True), 1):
            if other := self._read_otherwise(turn.shown, search.shown):
                return f"search {number}, {search.query!r:.80}: {other}"
        return ""

    def _read_otherwise(self, shown: Shown | None, read: Shown | None) -> str:
        """Why a policy would have read other documents than the agent; "": it would not, or what
        the agent read was not recorded.
        """
        if shown is None or read is None or _alike(shown, read):
            return ""
        limits = ", ".join(
            f"episode.{name}={getattr(self._episode, name)}"
            for name in ("top_k", "max_observation_tokens", "max_context_tokens")
        )
        return f"the agent read {_in_words(read)}, and {limits} show {_in_words(shown)}"

    def _control_token(self, text: str) -> str | None:
        return next((each for each in self.control_tokens if each in text), None)

    @property
    def _eos_id(self) -> int:
        assert isinstance(self._tokenizer.eos_token_id, int)
        return self._tokenizer.eos_token_id

    # the rest of a generator, of which nothing is needed

    def bind(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """No model writes here."""

    async def sync_weights(self, policy: nn.Module) -> None:
        """No model writes here."""

    async def release(self) -> None:
        """Nothing is held."""


def _alike(shown: Shown, read: Shown) -> bool:
    """Whether a policy reads what an agent read; agents cut by characters, policies by tokens."""
    if shown.documents != read.documents:
        return False
    if shown.cut_at is None or read.cut_at is None:
        return shown.cut_at == read.cut_at
    return max(shown.cut_at, read.cut_at) <= 2 * min(shown.cut_at, read.cut_at)


def _in_words(shown: Shown) -> str:
    if shown.cut_at is not None:
        return f"{shown.cut_at} characters of the first document"
    return f"{shown.documents} whole documents"
