"""Log-prob and entropy of each sampled token, and the characters of the text that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from zerosearch.core.distributed import gather_objects
from zerosearch.training.credit import TrajectoryKey
from zerosearch.types import PolicyBatch, Trajectory

_HALF = "\ufffd"  # what the bytes of half a character decode to


@dataclass(kw_only=True, slots=True, frozen=True)
class TurnTokens:
    """The sampled tokens of a turn; lists are aligned, [R]."""

    characters: list[int]  # of the turn's text, to which they add up; 0: half a one, or an EOS
    logprobs: list[float]  # nats, under the distribution sampled from
    entropies: list[float] | None  # nats, of that distribution; None: nobody asked


def tokens_of_turns(
    trajectory: Trajectory,
    text_of: Callable[[list[int]], str],
    entropies: Sequence[float] | None = None,
) -> list[TurnTokens | None]:
    """The tokens of each turn; None of a turn whose tokens are not known, as of a chat model.

    Args:
        trajectory: with tokens and log-probs as sampled.
        text_of: what the turns' text was made with.
        entropies: [R] of the tokens after the prompt.
    """
    found: list[TurnTokens | None] = []
    start = 0
    for turn in trajectory.turns:
        place = slice(start, start + turn.sampled_tokens)
        start = place.stop + turn.inserted_tokens
        characters = characters_of_tokens(trajectory.response_ids[place], turn.text, text_of)
        if characters is None or not all(trajectory.sampled[place]):
            found.append(None)
            continue
        found.append(
            TurnTokens(
                characters=characters,
                logprobs=trajectory.logprobs[place],
                entropies=None if entropies is None else [*entropies[place]],
            )
        )
    return found


def characters_of_tokens(
    ids: list[int], text: str, text_of: Callable[[list[int]], str]
) -> list[int] | None:
    """How many characters of a text each token stands for, [R]; None where they are not its tokens.

    A token that ends inside a character stands for none, and the one that completes it for all of
    it. Each is decoded behind those before it, since some tokenizers drop a space in front.
    """
    lengths, pieces = [0] * len(ids), []
    first = read = 0  # tokens from `first` to `read` are those before the present one
    for end in range(1, len(ids) + 1):
        before, both = text_of(ids[first:read]), text_of(ids[first:end])
        piece = both[len(before) :]
        if piece and (end == len(ids) or not piece.endswith(_HALF)):
            lengths[end - 1] = len(piece)
            pieces.append(piece)
            first, read = read, end
    return lengths if ids and "".join(pieces) == text else None


def keep_entropies(batch: PolicyBatch, mini_batch: PolicyBatch, rows: Sequence[int]) -> None:
    """Copy what an update found into the batch of which it read some rows."""
    if rows and batch.entropies is not None and mini_batch.entropies is not None:
        width = mini_batch.entropies.shape[1]
        batch.entropies[torch.tensor(rows), :width] = mini_batch.entropies


def token_entropies(
    batch: PolicyBatch, trajectories: Sequence[Trajectory], watched: Collection[TrajectoryKey]
) -> dict[TrajectoryKey, list[float]]:
    """Entropies of the tokens after the prompt of watched trajectories; a collective.

    Args:
        batch: after its first pass.
        trajectories: its rows.
        watched: of all ranks, the same on each.

    Returns:
        Those that any rank has trained on, 0 where a token was inserted.
    """
    if not watched:
        return {}
    own = dict(_entropies(batch, trajectories, watched))
    return {key: values for part in gather_objects(own) for key, values in part.items()}


def _entropies(
    batch: PolicyBatch, trajectories: Sequence[Trajectory], watched: Collection[TrajectoryKey]
) -> Iterator[tuple[TrajectoryKey, list[float]]]:
    assert batch.entropies is not None
    for row, trajectory in enumerate(trajectories):
        start = len(trajectory.prompt_ids)
        values = batch.entropies[row, start : start + len(trajectory.response_ids)]
        if trajectory.key in watched and not values.isnan().any():
            yield trajectory.key, values.tolist()
