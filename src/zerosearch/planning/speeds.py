"""How fast cards and engines are taken to be: `configs/speeds` has the numbers, with sources."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from zerosearch.core.ranges import Count, NotNegative, Positive, ShareAboveZero
from zerosearch.policy.activation_memory import Shape
from zerosearch.policy.flops import forward_flops

BYTES = 2  # of a number where models are served: bfloat16


@dataclass(kw_only=True, slots=True, frozen=True)
class Card:
    """One GPU, or CPU core."""

    flop_s: float  # peak
    memory_bytes_s: float
    link_bytes_s: float  # to another one of the node, in one direction
    gib: float


def card_named(device: str, cards: Iterable[str]) -> str | None:
    """The card of `cards` that a device is, by the name that CUDA gives it.

    All words of the card's name have to be in it; of several such cards the one of most words
    ("h100_pcie" before "h100").

    Args:
        device: such as "NVIDIA H100 80GB HBM3".
        cards: names of `configs/speeds`.
    """
    words = set(re.split(r"[^a-z0-9]+", device.lower()))
    fitting = [card for card in cards if words >= set(card.split("_"))]
    return max(fitting, key=lambda card: card.count("_"), default=None)


@dataclass(kw_only=True, slots=True, frozen=True)
class Speeds:
    """What the plan of time takes for given."""

    cards: dict[str, dict[str, Positive]]  # arguments of `Card` by name
    network_bytes_s: Positive  # between nodes, per GPU
    disk_bytes_s: Positive  # of a node
    mfu: ShareAboveZero  # of training, without what checkpointing computes again
    prefill_share: ShareAboveZero  # of peak FLOP/s, where tokens are read
    decode_share: ShareAboveZero  # of memory bandwidth, where they are sampled
    decode_host_s: NotNegative  # beside, per token of a batch
    turn_share: ShareAboveZero  # of a turn's budget that it samples
    retrieval_s: NotNegative  # of a search that no model answers
    retrieved_words: Count  # of one of its documents


@dataclass(kw_only=True, slots=True, frozen=True)
class Size:
    """A model as its work depends on it."""

    parameters: float  # that a token is multiplied with: all but an embedding that is looked up
    attention: float = 0.0  # numbers of the queries of one token in all layers
    kv_bytes: float = 0.0  # of one token's keys and values
    number_bytes: int = BYTES  # of a weight where it samples

    @classmethod
    def of_policy(cls, shape: Shape, parameters: int, tied: bool, number_bytes: int) -> Size:
        """Of a model that is built."""
        looked_up = 0 if tied else shape.vocabulary * shape.hidden
        return cls(
            parameters=parameters - looked_up,
            attention=shape.layers * shape.heads * shape.head_size,
            kv_bytes=2 * shape.layers * shape.kv_heads * shape.head_size * number_bytes,
            number_bytes=number_bytes,
        )

    def forward_flops(self, context: float) -> float:
        """Of one token; half of `context` tokens, the causal mean, are attended to."""
        return forward_flops(self.parameters, self.attention, 1, context / 2)


@dataclass(kw_only=True, slots=True, frozen=True)
class ReplicatedModel:
    """What samples: replicas of a model, each on some GPUs."""

    size: Size
    card: Card
    speeds: Speeds
    replicas: float
    rows: int  # that one of them decodes at a time
    gpus_each: int = 1  # tensor parallel

    @property
    def gpus(self) -> float:
        """All of them."""
        return self.replicas * self.gpus_each

    def reading_s(self, tokens: float) -> float:
        """Seconds in which prompts of so many tokens in all are read."""
        flop_s = self.gpus * self.card.flop_s * self.speeds.prefill_share
        return tokens * 2 * self.size.parameters / flop_s

    def writing_s(self, rows: float, tokens: float, context: float) -> float:
        """Seconds in which each of some rows samples so many tokens.

        A step takes as long as memory or arithmetic needs, whichever is slower, and what the host
        adds. What does not fit into a batch waits for the next one.

        Args:
            rows: over all replicas.
            tokens: of each.
            context: tokens that a row attends to, on average.
        """
        waves = max(1.0, rows / self.replicas / self.rows)
        own = rows / self.replicas / waves
        read = self.size.parameters * self.size.number_bytes + own * context * self.size.kv_bytes
        step = max(
            read / (self.gpus_each * self.card.memory_bytes_s * self.speeds.decode_share),
            own
            * self.size.forward_flops(2 * context)
            / (self.gpus_each * self.card.flop_s * self.speeds.prefill_share),
        )
        return min(1.0, own) * waves * tokens * (step + self.speeds.decode_host_s)
