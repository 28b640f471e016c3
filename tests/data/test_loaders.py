"""Order, mixing and sharding of questions, as pure functions of (seed, position)."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from zerosearch.data.loaders import EvalLoader, QuestionBatch, TrainLoader, rank_slice
from zerosearch.data.mixing import ShuffledQuestions, ShuffledStream, SourceMix, cycle_counts
from zerosearch.types import Question


def questions(label: str, count: int) -> list[Question]:
    return [
        Question(uid=f"{label}:{i}", text="Q?", golden_answers=("A",), source=label)
        for i in range(count)
    ]


class ListStream:
    """A stream over a list, with a position like that of a file."""

    def __init__(self, label: str, count: int) -> None:
        self.items = questions(label, count)
        self.position = 0

    def read(self, state: dict[str, Any] | None) -> Iterator[Question]:
        self.position = state["position"] if state else 0
        while self.position < len(self.items):
            self.position += 1
            yield self.items[self.position - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}


def loader(*, streamed: bool = False, seed: int = 0, **kwargs: Any) -> TrainLoader:
    """6 questions a step from a (7 questions, weight 2) and b (11 questions, weight 1)."""
    other = (
        ShuffledStream(ListStream("b", 11), "b", seed, block=4)
        if streamed
        else ShuffledQuestions(questions("b", 11), "b", seed)
    )
    draws = {"a": ShuffledQuestions(questions("a", 7), "a", seed), "b": other}
    return TrainLoader(draws, SourceMix([2.0, 1.0], seed), questions_per_step=6, **kwargs)


def uids(batches: Any, count: int) -> list[list[str]]:
    return [[q.uid for q in batch] for batch in itertools.islice(batches, count)]


def all_uids(batches: Any, count: int) -> list[tuple[list[str], list[str]]]:
    """Those of questions and spares."""
    return [
        ([q.uid for q in batch], [q.uid for q in batch.spares])
        for batch in itertools.islice(batches, count)
    ]


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1.0], [1]),
        ([1.0, 1.0], [1, 1]),
        ([2.0, 1.0], [667, 333]),
        ([0.75, 0.25], [3, 1]),
        ([1.0, 1.0, 1.0], [334, 333, 333]),
        ([90447.0, 79168.0], [533, 467]),  # sizes of HotpotQA and NQ
        ([1e9, 1.0], [999, 1]),  # a source never starves
    ],
)
def test_cycle_counts(weights: list[float], counts: list[int]) -> None:
    assert cycle_counts(weights) == counts


def test_mix_is_exact_and_consecutive_per_source() -> None:
    mix = SourceMix([3.0, 1.0], seed=5)
    slots = [mix.source(slot) for slot in range(400)]
    assert Counter(source for source, _ in slots) == {0: 300, 1: 100}
    for source in (0, 1):
        numbers = [number for drawn, number in slots if drawn == source]
        assert numbers == list(range(len(numbers)))
    assert [SourceMix([3.0, 1.0], seed=5).source(slot) for slot in (399, 3, 200)] == [
        slots[399],
        slots[3],
        slots[200],
    ]
    other = SourceMix([3.0, 1.0], seed=6)
    assert [other.source(slot) for slot in range(400)] != slots


def test_every_epoch_holds_every_question_once_in_a_new_order() -> None:
    draws = ShuffledQuestions(questions("a", 20), "a", seed=0)
    epochs = [[draws.draw(e * 20 + i).uid for i in range(20)] for e in range(3)]
    assert all(sorted(epoch) == sorted(f"a:{i}" for i in range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert draws.draw(5).uid == epochs[0][5]  # an earlier epoch can be asked for again
    assert ShuffledQuestions(questions("a", 20), "a", 1).draw(0).uid != epochs[0][0] or (
        [ShuffledQuestions(questions("a", 20), "a", 1).draw(i).uid for i in range(20)] != epochs[0]
    )


def test_stream_shuffles_within_blocks_and_passes() -> None:
    draws = ShuffledStream(ListStream("s", 10), "s", seed=0, block=4)
    passes = [[draws.draw(0).uid for _ in range(10)] for _ in range(3)]
    for order in passes:
        numbers = [int(uid.split(":")[1]) for uid in order]
        assert [sorted(numbers[:4]), sorted(numbers[4:8]), sorted(numbers[8:])] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9],
        ]
    assert passes[0] != passes[1]
    plain = ShuffledStream(ListStream("s", 3), "s", seed=0, block=1)
    assert [plain.draw(0).uid for _ in range(4)] == ["s:0", "s:1", "s:2", "s:0"]


@pytest.mark.parametrize("cut", range(12))
def test_stream_resumes_inside_a_block(cut: int) -> None:
    whole = ShuffledStream(ListStream("s", 5), "s", seed=0, block=3)
    expected = [whole.draw(0).uid for _ in range(20)]
    first = ShuffledStream(ListStream("s", 5), "s", seed=0, block=3)
    head = [first.draw(0).uid for _ in range(cut)]
    second = ShuffledStream(ListStream("s", 5), "s", seed=0, block=3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert head + [second.draw(0).uid for _ in range(20 - cut)] == expected


def test_an_empty_stream_is_an_error() -> None:
    with pytest.raises(ValueError, match="'s' has no rows"):
        ShuffledStream(ListStream("s", 0), "s", seed=0, block=3).draw(0)


@pytest.mark.parametrize("streamed", [False, True])
def test_steps_are_the_same_for_any_number_of_ranks(streamed: bool) -> None:
    alone = uids(loader(streamed=streamed), 20)
    assert [len(batch) for batch in alone] == [6] * 20
    assert uids(loader(streamed=streamed), 20) == alone
    assert uids(loader(streamed=streamed, seed=1), 20) != alone
    for world_size in (2, 3, 6):
        ranks = [
            uids(loader(streamed=streamed, rank=rank, world_size=world_size), 20)
            for rank in range(world_size)
        ]
        joined = [[uid for share in step for uid in share] for step in zip(*ranks, strict=True)]
        assert joined == alone


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("done", [0, 1, 7])
@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("look_ahead", [False, True])
def test_position_is_that_of_the_trained_step(
    streamed: bool, done: int, ahead: int, look_ahead: bool
) -> None:
    expected = uids(loader(streamed=streamed), 12)
    steps = [0]
    first = loader(streamed=streamed, steps_done=lambda: steps[0], look_ahead=look_ahead)
    iterator = iter(first)
    for _ in range(done + ahead):
        next(iterator)
    steps[0] = done
    state = json.loads(json.dumps(first.state_dict()))
    assert state["step"] == done
    second = loader(streamed=streamed, steps_done=lambda: 100)  # a counter that starts elsewhere
    second.load_state_dict(state)
    assert uids(second, 12 - done) == expected[done:]
    # Lightning makes a new iterator for every epoch: it goes on, too
    assert uids(first, 12 - done) == expected[done:]


@pytest.mark.parametrize("streamed", [False, True])
def test_each_step_comes_with_the_questions_of_the_next(streamed: bool) -> None:
    expected = uids(loader(streamed=streamed, rank=1, world_size=2), 5)
    batches = list(
        itertools.islice(
            loader(streamed=streamed, rank=1, world_size=2, look_ahead=True), len(expected) - 1
        )
    )
    assert uids(batches, 4) == expected[:-1]
    assert uids((batch.following for batch in batches), 4) == expected[1:]
    assert next(iter(loader())).following is None


@pytest.mark.parametrize("streamed", [False, True])
def test_a_step_and_its_spares_are_what_a_larger_step_would_be(streamed: bool) -> None:
    plain = [uid for step in uids(loader(streamed=streamed), 30) for uid in step]
    drawn = all_uids(loader(streamed=streamed, spare_rounds=2), 10)
    assert [uid for step in drawn for part in step for uid in part] == plain
    assert [(len(own), len(spares)) for own, spares in drawn] == [(6, 12)] * 10
    without = all_uids(loader(streamed=streamed, spare_rounds=0), 30)
    assert [uid for own, _ in without for uid in own] == plain
    assert not any(spares for _, spares in without)


@pytest.mark.parametrize("streamed", [False, True])
def test_ranks_share_questions_and_spares(streamed: bool) -> None:
    alone = all_uids(loader(streamed=streamed, spare_rounds=2), 8)
    for world_size in (2, 3, 6):
        ranks = [
            all_uids(loader(streamed=streamed, spare_rounds=2, rank=rank, world_size=world_size), 8)
            for rank in range(world_size)
        ]
        assert {len(spares) for rank in ranks for _, spares in rank} == {12 // world_size}
        joined = [
            tuple([uid for share in parts for uid in share] for parts in zip(*step, strict=True))
            for step in zip(*ranks, strict=True)
        ]
        assert joined == alone


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("done", [0, 1, 5])
@pytest.mark.parametrize("look_ahead", [False, True])
def test_spares_are_the_same_after_a_resume(streamed: bool, done: int, look_ahead: bool) -> None:
    expected = all_uids(loader(streamed=streamed, spare_rounds=3), 8)
    steps = [0]
    first = loader(
        streamed=streamed, spare_rounds=3, steps_done=lambda: steps[0], look_ahead=look_ahead
    )
    handed_out = iter(first)
    for _ in range(done + 1):
        next(handed_out)
    steps[0] = done
    state = json.loads(json.dumps(first.state_dict()))
    second = loader(streamed=streamed, spare_rounds=3, look_ahead=look_ahead)
    second.load_state_dict(state)
    batches = list(itertools.islice(second, 8 - done))
    assert all_uids(batches, 8) == expected[done:]
    if look_ahead:
        following = [batch.following for batch in batches[:-1]]
        assert all_uids(following, 8) == expected[done + 1 :]


def test_resume_does_not_replay_the_steps_before() -> None:
    far = loader()
    far.load_state_dict({"step": 10**7, "sources": {}})  # replaying would take an hour
    again = loader()
    again.load_state_dict({"step": 10**7 - 1, "sources": {}})
    assert uids(far, 1) == uids(again, 2)[1:]


@pytest.mark.parametrize(
    ("questions_per_step", "world_size", "remedy"),
    [(16, 3, "use 15 or 18"), (2, 4, "use 4"), (0, 1, "use 1")],
)
def test_step_must_divide_over_ranks(questions_per_step: int, world_size: int, remedy: str) -> None:
    draws = {"a": ShuffledQuestions(questions("a", 7), "a", 0)}
    with pytest.raises(ValueError, match=rf"questions_per_step={questions_per_step} .*{remedy}$"):
        TrainLoader(
            draws,
            SourceMix([1.0], 0),
            questions_per_step=questions_per_step,
            world_size=world_size,
        )


@pytest.mark.parametrize("count", [1, 6, 125])  # 125: Bamboogle, of which the reference drops 53
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_asks_everything_once_with_equal_batch_counts(
    count: int, world_size: int
) -> None:
    ranks = [
        EvalLoader(questions("t", count), batch_size=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert [len(list(loader)) for loader in ranks] == [-(-count // 4)] * world_size
    assert [len(loader) for loader in ranks] == [-(-count // 4)] * world_size
    asked = [
        question.uid for batch in zip(*ranks, strict=True) for share in batch for question in share
    ]
    assert asked == [f"t:{i}" for i in range(count)]
    assert uids(ranks[0], 100) == uids(ranks[0], 100)


def test_evaluation_batch_must_be_positive() -> None:
    with pytest.raises(ValueError, match="validation_batch=0"):
        EvalLoader([], batch_size=0)


def test_rank_slices_cover_everything_once() -> None:
    for count, world_size in ((10, 3), (2, 4), (0, 2)):
        items = list(range(count))
        shares = [items[rank_slice(count, rank, world_size)] for rank in range(world_size)]
        assert [item for share in shares for item in share] == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_question_batch_reads_like_a_list() -> None:
    items = questions("a", 3)
    batch = QuestionBatch(items)
    assert (len(batch), list(batch), batch[1], batch[1:]) == (3, items, items[1], tuple(items[1:]))
    assert not QuestionBatch([])
    assert repr(batch) == "QuestionBatch(['a:0', 'a:1', 'a:2'])"
