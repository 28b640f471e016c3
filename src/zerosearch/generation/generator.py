"""The one interface behind which every sampler of tokens stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import nn
from transformers import PreTrainedTokenizerBase

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import CountOrZero, NotNegative, ShareAboveZero, check_least
from zerosearch.policy.source import PolicySource

CompletionStop = Literal[
    "stop",  # a stop string was completed
    "eos",  # the policy ended its text
    "length",  # max_new_tokens, or the model's context, was used up
]


@dataclass(kw_only=True, slots=True, frozen=True)
class Sampling:
    """How tokens are drawn; by default from the policy's own distribution (invariant 8)."""

    temperature: NotNegative = 1.0  # 0 is greedy
    top_p: ShareAboveZero = 1.0  # 1 is off
    top_k: CountOrZero = 0  # 0 is off

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(
                f"sampling.temperature={self.temperature}: give a finite number, 0 or more "
                "(0 is greedy)"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(
                f"sampling.top_p={self.top_p}: give a share above 0 and at most 1 (1 is off)"
            )
        check_least("sampling", "top_k", self.top_k, 0)


GREEDY = Sampling(temperature=0.0)


@dataclass(kw_only=True, slots=True, frozen=True)
class CompletionRequest:
    """What is wanted of one completion."""

    max_new_tokens: int
    seed: int  # 64 bits; the same seed gives the same draws whoever shares the batch
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()  # texts that end the completion and stay in it
    # Told the whole text so far whenever it grew, by generators that can, never half a character.
    on_text: Callable[[str], None] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(
                f"CompletionRequest.max_new_tokens={self.max_new_tokens}: must be at least 1"
            )
        if not 0 <= self.seed < 2**64:
            raise InputError(f"CompletionRequest.seed={self.seed}: must lie in [0, 2**64)")
        if isinstance(self.stop, str) or not all(self.stop):
            raise InputError(
                f"CompletionRequest.stop={self.stop!r}: must be a tuple of non-empty strings"
            )


@dataclass(kw_only=True, slots=True, frozen=True)
class Completion:
    """What was sampled for one prompt. Shapes: `token_ids`, `logprobs` [R], R >= 1."""

    token_ids: list[int]  # every sampled token: those that complete the stop string and EOS too
    logprobs: list[float]  # under the distribution sampled from; greedy: under the plain softmax
    text: str  # decoded `token_ids` without the control tokens (EOS, BOS, padding)
    stop_reason: CompletionStop
    weight_version: int  # number of weight syncs before the first token was sampled


class Generator(Protocol):
    """Samples completions; safe to call concurrently, which is how requests get batched."""

    own_weights: bool  # samples from a copy, so it may go on while the policy is trained
    weight_version: int  # number of weight syncs so far

    def bind(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Say which policy samples; called before the first request."""
        ...

    async def generate(self, prompt_ids: list[int], request: CompletionRequest) -> Completion:
        """Sample one completion of the prompt.

        Args:
            prompt_ids: token ids [P], P >= 1; never cut.
            request: length, randomness and stops.

        Raises:
            InputError: the prompt is empty or leaves no room in the model's context.
        """
        ...

    async def sync_weights(self, policy: nn.Module) -> None:
        """Sample from the policy's present weights from now on; whatever was cached is dropped."""
        ...

    async def release(self) -> None:
        """Give back memory that is only of use while trajectories are being continued."""
        ...


@runtime_checkable
class PolicyCheckable(Protocol):
    """A generator that can say whether it will serve a policy before that one is loaded."""

    async def check_policy(self, source: PolicySource, *, context_tokens: int) -> None:
        """Raise an InputError with the remedy where it will not.

        Args:
            source: of the policy.
            context_tokens: that one episode may take.
        """
        ...
