"""Data that flows through the system, in the order it flows.

Question -> (SearchRequest -> SearchResult)* -> Trajectory -> PolicyBatch. Everything here is plain
data: no model, no tokenizer, no I/O, so that any two stages can be tested apart.

Shapes: `[B]` trajectories of a batch, `[T]` tokens, `[R]` response tokens of a trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from zerosearch.core.errors import ZeroSearchError
from zerosearch.core.text import whole_characters

if TYPE_CHECKING:
    import torch

Action = Literal["search", "answer", "invalid"]

StopReason = Literal[
    "answer",  # the policy closed an answer tag
    "eos",  # the policy ended its text without an answer
    "max_turns",  # the last turn asked for another search instead of answering
    "invalid",  # a turn closed a tag without a query or an answer in it
    "turn_budget",  # the last turn ran out of tokens before it closed a tag
    "context",  # the next turn would not have fitted the context
    "search_failed",  # infrastructure: the trajectory is invalid
    "model_failed",  # the same, of a model behind a server; never in training
    "reward_failed",  # the same, of a reward function that took too long
]


@dataclass(kw_only=True, slots=True, frozen=True)
class Question:
    """One question with its golden answers.

    `uid` is unique over all sources (never the row index of a file, which restarts per source).
    """

    uid: str
    text: str
    golden_answers: tuple[str, ...]
    source: str = "unknown"
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(kw_only=True, slots=True, frozen=True)
class Document:
    """One retrieved or simulated document; `title` is empty where the engine gives none."""

    text: str
    title: str = ""

    def __post_init__(self) -> None:
        for name in ("text", "title"):
            object.__setattr__(self, name, whole_characters(getattr(self, name)))


@dataclass(kw_only=True, slots=True, frozen=True)
class SearchRequest:
    """Everything an engine may use to answer one query; engines keep no state of their own."""

    query: str
    question: str
    golden_answers: tuple[str, ...]
    noise_probability: float = 0.0
    top_k: int = 3
    seed: int = 0
    timeout_s: float = 60.0


@dataclass(kw_only=True, slots=True, frozen=True)
class SearchResult:
    """What an engine returned.

    `noisy` is the quality that the documents were written in: drawn from the noise probability, and
    True as well where nothing useful could be written. How well a simulator that tried for useful
    documents did is no part of it (that is measured: `simulator/fidelity.py`). None for engines
    that do not choose the quality.
    """

    documents: tuple[Document, ...]
    requested: int
    noisy: bool | None = None
    latency_s: float = 0.0
    cached: bool = False
    attempts: int = 1  # calls of the server, the failed ones included
    problems: tuple[str, ...] = ()  # what was wrong with the replies of all attempts, by name
    tokens: int = 0  # read and written by a simulator, all attempts together
    cost_usd: float = 0.0


class SearchError(ZeroSearchError):
    """A search that failed for a reason outside the policy; makes its trajectory invalid.

    Args:
        endpoint: who failed (URL or engine name), shown to the user.
        reason: what happened and how to fix it.
        tokens: read and written in vain.
        cost_usd: of all attempts.
    """

    def __init__(
        self, endpoint: str, reason: str, *, tokens: int = 0, cost_usd: float = 0.0
    ) -> None:
        super().__init__(f"search engine {endpoint}: {reason}")
        self.endpoint = endpoint
        self.reason = reason
        self.tokens = tokens
        self.cost_usd = cost_usd


@dataclass(kw_only=True, slots=True, frozen=True)
class Shown:
    """How much of a search result was read."""

    documents: int  # the first ones; one that was cut counts
    # characters of the first one as it was shown, which then was alone; None: whole
    cut_at: int | None = None


@dataclass(kw_only=True, slots=True)
class Turn:
    """One sampled text and what the environment answered to it."""

    text: str
    action: Action
    query: str | None = None
    result: SearchResult | None = None
    observation: str | None = None
    shown: Shown | None = None  # of `result`; None: nothing, or the agent does not say
    sampled_tokens: int = 0
    inserted_tokens: int = 0


@dataclass(kw_only=True, slots=True)
class Trajectory:
    """One episode as token ids with the provenance of each token.

    Shapes: `prompt_ids` [P]; `response_ids`, `sampled`, `logprobs` [R].
    """

    question: Question
    group: int  # siblings of one question in one step; made by the rollouter, never read from data
    sibling: int
    prompt_ids: list[int]
    response_ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)  # False: inserted
    logprobs: list[float] = field(default_factory=list)  # behaviour log-probs; 0 where inserted
    turns: list[Turn] = field(default_factory=list)
    weight_versions: list[int] = field(default_factory=list)  # of the sampler, one per turn
    stop_reason: StopReason = "answer"
    error: str | None = None
    lost_tokens: int = 0  # of a search that failed
    lost_usd: float = 0.0

    def end(self, reason: StopReason, failure: SearchError | None = None) -> None:
        """Note why the episode is over, and what a search that failed has cost."""
        self.stop_reason = reason
        if failure is not None:
            self.error = str(failure)
            self.lost_tokens, self.lost_usd = failure.tokens, failure.cost_usd

    @property
    def key(self) -> tuple[int, int]:
        """Group and sibling, which no other trajectory of the step has."""
        return self.group, self.sibling

    @property
    def valid(self) -> bool:
        """False when infrastructure failed: then it is left out of loss and statistics."""
        return self.error is None

    @property
    def final_text(self) -> str:
        """Sampled text of the last turn, the only place an answer is read from."""
        return self.turns[-1].text if self.turns else ""

    @property
    def searches(self) -> list[SearchResult]:
        """Results of all searches that succeeded, in order."""
        return [turn.result for turn in self.turns if turn.result is not None]


@dataclass(kw_only=True, slots=True)
class PolicyBatch:
    """Right-padded trajectories, ready for the loss. All tensors are [B, T] unless said otherwise.

    A value at index t belongs to the token at index t (its log-prob is predicted from t - 1).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor  # True on real tokens
    sampled_mask: torch.Tensor  # True on tokens to learn from: sampled, in valid trajectories
    behaviour_logprobs: torch.Tensor  # of the sampler; NaN where learned from but not sampled
    advantages: torch.Tensor
    old_logprobs: torch.Tensor | None = (
        None  # policy before this step's updates, recomputed in training
    )
    ref_logprobs: torch.Tensor | None = None
    old_values: torch.Tensor | None = None  # of the critic before this step's updates
    returns: torch.Tensor | None = None  # what the critic should have said
    # of the policy at each token, written by the update that reads the batch where it is not None
    entropies: torch.Tensor | None = None
