"""From trajectories to tensors: padding, mini-batches, and micro-batches of a token budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zerosearch.core.seeding import derive_random
from zerosearch.types import PolicyBatch, Trajectory


def collate(
    trajectories: Sequence[Trajectory], *, pad_id: int, with_documents: bool = False
) -> PolicyBatch:
    """Pad trajectories on the right; their advantages are 0 as yet.

    Inserted tokens and all tokens of invalid trajectories are not in `sampled_mask`. Log-probs and
    advantages are float32 whatever torch's default is.

    Args:
        trajectories: B of them; none gives one empty row, so that a rank without data still runs
            the forward and backward passes of the others (invariant 9).
        pad_id: written where `attention_mask` is False, and never compared with.
        with_documents: take inserted tokens for sampled ones (see `Algorithm.train_on_documents`).
    """
    width = max((len(t.prompt_ids) + len(t.response_ids) for t in trajectories), default=2)
    shape = (max(1, len(trajectories)), width)
    batch = PolicyBatch(
        input_ids=torch.full(shape, pad_id),
        attention_mask=torch.zeros(shape, dtype=torch.bool),
        sampled_mask=torch.zeros(shape, dtype=torch.bool),
        behaviour_logprobs=torch.zeros(shape, dtype=torch.float32),
        advantages=torch.zeros(shape, dtype=torch.float32),
    )
    if not trajectories:
        batch.attention_mask[:] = True
    for row, trajectory in enumerate(trajectories):
        start = len(trajectory.prompt_ids)
        end = start + len(trajectory.response_ids)
        batch.input_ids[row, :end] = torch.tensor(trajectory.prompt_ids + trajectory.response_ids)
        batch.attention_mask[row, :end] = True
        sampled = torch.tensor(trajectory.sampled, dtype=torch.bool)
        logprobs = torch.tensor(trajectory.logprobs, dtype=torch.float32)
        if with_documents:
            logprobs[~sampled] = torch.nan
            sampled = torch.ones_like(sampled)
        batch.sampled_mask[row, start:end] = sampled & trajectory.valid
        batch.behaviour_logprobs[row, start:end] = logprobs
    return batch


def split_mini_batches(count: int, parts: int, *coordinates: int | str) -> list[list[int]]:
    """A random partition of `range(count)` into `parts` mini-batches of nearly equal size.

    Every index is used once: no uneven rest is dropped or weighs more.

    Args:
        count: trajectories.
        parts: optimizer updates per pass.
        coordinates: of the draw, see `derive_seed`.
    """
    if parts == 1:
        return [list(range(count))]
    order = list(range(count))
    derive_random("mini-batches", *coordinates).shuffle(order)
    return [order[part::parts] for part in range(parts)]


def split_micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group indices of similar length so that each padded group fits the budget.

    Args:
        lengths: [B] tokens of each trajectory.
        token_budget: rows times longest row of a group, at most; a longer single row is its own
            group.

    Returns:
        Groups of indices, the longest first so that a lack of memory shows at once.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= token_budget
        if fits:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def pack_micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group indices so that the tokens of each group, without padding, fit the budget.

    First-fit decreasing: each row, the longest first, joins the first group with room for it; at
    most 11/9 of the fewest groups there could be, and one more (Johnson 1973).

    Args:
        lengths: [B] tokens of each trajectory.
        token_budget: tokens of a group, at most; a longer single row is its own group.

    Returns:
        Groups of indices.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        fitting = next((group for group, left in enumerate(room) if length <= left), None)
        if fitting is None:
            groups.append([index])
            room.append(token_budget - length)
        else:
            groups[fitting].append(index)
            room[fitting] -= length
    return groups


def select(batch: PolicyBatch, rows: Sequence[int]) -> PolicyBatch:
    """Some rows of a batch, without the columns that are padding in all of them.

    No rows at all give one empty row (see `collate`) with the fields of the batch.
    """
    if not rows:
        nothing = collate([], pad_id=0)
        given = {
            name: torch.zeros_like(nothing.advantages)
            for name in ("old_logprobs", "ref_logprobs", "old_values", "returns")
            if getattr(batch, name) is not None
        }
        return dataclasses.replace(nothing, **given)
    index = torch.as_tensor(rows)
    mask = batch.attention_mask[index]
    width = int(mask.sum(dim=1).max())
    return _map(batch, lambda tensor: tensor[index, :width])


def to_device(batch: PolicyBatch, device: torch.device) -> PolicyBatch:
    """The batch on another device."""
    return _map(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _map(batch: PolicyBatch, function: Callable[[Tensor], Tensor]) -> PolicyBatch:
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return PolicyBatch(
        **{name: None if value is None else function(value) for name, value in fields.items()}  # type: ignore[arg-type]
    )
