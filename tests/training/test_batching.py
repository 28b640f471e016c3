import dataclasses
from collections.abc import Sequence

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision import HalfPrecision

from tests.helpers.models import make_tokenizer
from zerosearch.training.batching import (
    collate,
    pack_micro_batches,
    select,
    split_micro_batches,
    split_mini_batches,
    to_device,
)
from zerosearch.training.micro_batches import MicroBatches
from zerosearch.types import PolicyBatch, Question, Trajectory

QUESTION = Question(uid="q", text="?", golden_answers=("x",))
PAD = 9


def trajectory(
    prompt: Sequence[int], response: Sequence[int], sampled: Sequence[int], **fields: str
) -> Trajectory:
    return Trajectory(
        question=QUESTION,
        group=0,
        sibling=0,
        prompt_ids=list(prompt),
        response_ids=list(response),
        sampled=[bool(flag) for flag in sampled],
        logprobs=[-float(token) if flag else 0.0 for token, flag in zip(response, sampled)],  # noqa: B905
        **fields,  # type: ignore[arg-type]
    )


def example() -> PolicyBatch:
    rows = [
        trajectory([1, 2], [3, 4, 5], [1, 0, 1]),
        trajectory([1], [6], [1]),
        trajectory([1, 2, 3], [7, 8], [1, 1], error="search engine x: down"),
    ]
    return collate(rows, pad_id=PAD)


def same(one: torch.Tensor | None, other: list) -> bool:
    return one is not None and one.tolist() == other


def test_trajectories_are_padded_on_the_right() -> None:
    batch = example()
    assert same(batch.input_ids, [[1, 2, 3, 4, 5], [1, 6, 9, 9, 9], [1, 2, 3, 7, 8]])
    mask = [[True] * 5, [True, True, False, False, False], [True] * 5]
    assert same(batch.attention_mask, mask)
    assert batch.old_logprobs is None and batch.ref_logprobs is None


def test_invariant_02_inserted_tokens_and_invalid_trajectories_are_not_trained() -> None:
    batch = example()
    trained = [[0, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert same(batch.sampled_mask, [[bool(flag) for flag in row] for row in trained])
    assert same(batch.behaviour_logprobs[:2], [[0, 0, -3, 0, -5], [0, -6, 0, 0, 0]])
    assert not batch.advantages.any()


def test_documents_are_trained_on_where_asked_for_but_were_sampled_by_nobody() -> None:
    rows = [trajectory([1, 2], [3, 4, 5], [1, 0, 1]), trajectory([1], [7], [1], error="down")]
    batch = collate(rows, pad_id=PAD, with_documents=True)
    assert same(batch.sampled_mask, [[False, False, True, True, True], [False] * 5])
    assert same(batch.behaviour_logprobs[0].isnan(), [False, False, False, True, False])


def test_invariant_11_defect_12_padding_is_by_mask_also_where_pad_is_a_token_of_the_text() -> None:
    tokenizer = make_tokenizer(pad=False)
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int)
    rows = [trajectory([eos, 1], [2, eos, eos], [1, 0, 1]), trajectory([1], [eos], [1])]
    batch = collate(rows, pad_id=eos)
    assert same(batch.attention_mask.sum(dim=1), [5, 2])
    assert same(batch.sampled_mask[0], [False, False, True, False, True])
    assert same(batch.sampled_mask[1], [False, True, False, False, False]), "EOS is trained"
    other = collate(rows, pad_id=0)
    assert torch.equal(batch.attention_mask, other.attention_mask)
    assert torch.equal(batch.sampled_mask, other.sampled_mask)


def test_defect_07_the_ids_of_a_batch_are_those_of_the_trajectories() -> None:
    rows = [trajectory([5, 6], [300, 2**17, 0], [1, 1, 0]), trajectory([7], [8], [1])]
    batch = collate(rows, pad_id=PAD)
    for row, each in enumerate(rows):
        kept = batch.input_ids[row][batch.attention_mask[row]]
        assert kept.tolist() == each.prompt_ids + each.response_ids
    assert batch.input_ids.dtype == torch.int64


def test_log_probs_and_advantages_are_kept_whole_where_weights_are_bfloat16() -> None:
    with HalfPrecision("bf16-true").train_step_context():
        batch = collate([trajectory([1], [3], [1])], pad_id=PAD)
    assert batch.advantages.dtype == torch.float32
    assert batch.behaviour_logprobs.dtype == torch.float32


def test_an_empty_response_is_a_row_without_trained_tokens() -> None:
    batch = collate([trajectory([1, 2], [], [])], pad_id=PAD)
    assert same(batch.input_ids, [[1, 2]]) and not batch.sampled_mask.any()


def test_invariant_09_a_rank_without_trajectories_still_has_a_row_to_run() -> None:
    batch = collate([], pad_id=PAD)
    assert batch.input_ids.shape == (1, 2)
    assert batch.attention_mask.all() and not batch.sampled_mask.any()


# -- rows of a batch ------------------------------------------------------------------------------


def test_selected_rows_lose_the_columns_that_only_others_need() -> None:
    batch = dataclasses.replace(example(), old_logprobs=torch.arange(15.0).view(3, 5))
    part = select(batch, [1])
    assert same(part.input_ids, [[1, 6]]) and same(part.behaviour_logprobs, [[0, -6]])
    assert same(part.old_logprobs, [[5, 6]]) and part.ref_logprobs is None
    both = select(batch, [2, 0])
    assert same(both.input_ids, [[1, 2, 3, 7, 8], [1, 2, 3, 4, 5]])


@pytest.mark.parametrize("name", ["old_logprobs", "ref_logprobs", "old_values", "returns"])
def test_invariant_09_no_rows_give_an_empty_row_with_the_same_fields(name: str) -> None:
    batch = dataclasses.replace(example(), **{name: torch.ones(3, 5)})
    part = select(batch, [])
    for field in dataclasses.fields(PolicyBatch):
        value, like = getattr(part, field.name), getattr(batch, field.name)
        assert (value is None) is (like is None), field.name
        assert value is None or (value.shape, value.dtype) == ((1, 2), like.dtype)
    assert part.attention_mask.all() and not part.sampled_mask.any()


def test_a_batch_moves_as_a_whole() -> None:
    batch = dataclasses.replace(example(), ref_logprobs=torch.ones(3, 5))
    moved = to_device(batch, torch.device("meta"))
    devices = {
        value.device.type
        for field in dataclasses.fields(PolicyBatch)
        if (value := getattr(moved, field.name)) is not None
    }
    assert devices == {"meta"} and moved.old_logprobs is None


# -- mini-batches ---------------------------------------------------------------------------------


@hypothesis.given(count=st.integers(0, 60), parts=st.integers(1, 9), seed=st.integers(0, 99))
def test_defect_10_every_trajectory_is_in_one_mini_batch(count: int, parts: int, seed: int) -> None:
    split = split_mini_batches(count, parts, seed)
    assert len(split) == parts
    assert sorted(index for part in split for index in part) == list(range(count))
    sizes = [len(part) for part in split]
    assert max(sizes) - min(sizes) <= 1, "no rest is dropped or weighs more"


def test_invariant_13_mini_batches_are_drawn_from_their_position() -> None:
    one = split_mini_batches(40, 4, 0, 3, 1)
    assert one == split_mini_batches(40, 4, 0, 3, 1)
    others = [(1, 3, 1), (0, 4, 1), (0, 3, 2)]
    assert all(split_mini_batches(40, 4, *each) != one for each in others)
    assert one != [list(range(part, 40, 4)) for part in range(4)], "shuffled"


def test_a_single_mini_batch_keeps_the_order() -> None:
    assert split_mini_batches(4, 1, 7) == [[0, 1, 2, 3]]


# -- micro-batches --------------------------------------------------------------------------------


@hypothesis.given(lengths=st.lists(st.integers(0, 50), max_size=30), budget=st.integers(1, 200))
def test_micro_batches_hold_each_row_once_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    groups = split_micro_batches(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        widest = max(lengths[index] for index in group)
        assert len(group) * widest <= budget or len(group) == 1


@hypothesis.given(lengths=st.lists(st.integers(1, 50), max_size=30), budget=st.integers(1, 200))
def test_packed_micro_batches_hold_each_row_once_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    groups = pack_micro_batches(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    tokens = [sum(lengths[index] for index in group) for group in groups]
    assert all(
        count <= budget or len(group) == 1 for count, group in zip(tokens, groups, strict=True)
    )
    # two groups that fit one budget together would have been one
    assert sum(2 * count <= budget for count in tokens) <= 1


def test_packing_fills_the_gaps_that_long_rows_leave() -> None:
    assert pack_micro_batches([3, 10, 4, 9, 3], 14) == [[1, 2], [3, 0], [4]]
    assert pack_micro_batches([30, 1], 20) == [[0], [1]], "a row too long goes alone"
    assert pack_micro_batches([], 20) == []


def test_rows_of_similar_length_share_a_micro_batch_the_longest_first() -> None:
    assert split_micro_batches([3, 10, 4, 9, 3], 20) == [[1, 3], [2, 0, 4]]
    assert split_micro_batches([3, 10, 4, 9, 3], 11) == [[1], [3], [2, 0], [4]]
    assert split_micro_batches([30], 20) == [[0]], "a row too long for the budget goes alone"
    assert split_micro_batches([], 20) == []


def test_what_rows_share_counts_once_in_a_micro_batch() -> None:
    prompt = [*range(200)]
    rows = [trajectory(prompt, [300 + n] * 20, [1] * 20) for n in range(4)]
    batch = collate(rows, pad_id=PAD)
    for shares, groups in ((False, 2), (True, 1)):
        split = MicroBatches(tokens=450, device=torch.device("cpu"), shares=shares).split(batch)
        assert len([*split]) == groups
