"""Rows stay whole while others join and leave; finished rows are found by their ids."""

from __future__ import annotations

import gc
import weakref

import torch

from zerosearch.generation.transformers.kv import PrefixStore, RowCache, RowKV


def row_kv(*values: float, layers: int = 2) -> RowKV:
    """KV of one row whose token i holds values[i] everywhere (keys), minus it in the values."""
    tokens = torch.tensor(values)[None, :, None].expand(3, -1, 4)
    return [torch.stack([tokens + layer, -tokens]) for layer in range(layers)]


def append(cache: RowCache, *values: float) -> None:
    """Write one new column for the first len(values) rows, as a forward does."""
    keys = torch.tensor(values)[:, None, None, None].expand(-1, 3, 1, 4)
    for index in range(len(cache.layers)):
        cache.cache.update(keys + index, -keys, index)
    cache.end += 1


def contents(cache: RowCache, row: int, tokens: int) -> list[float]:
    """The last tokens of a row, after checking that all layers, heads and widths agree."""
    kv = cache.view(row, cache.end - tokens, cache.end)
    values = kv[0][0, 0, :, 0]
    for layer, both in enumerate(kv):
        torch.testing.assert_close(both[0], (values + layer)[None, :, None].expand(3, -1, 4))
        torch.testing.assert_close(both[1], -values[None, :, None].expand(3, -1, 4))
    return values.tolist()


def test_rows_survive_growth_of_both_dimensions():
    cache = RowCache(2)
    cache.reserve(2, 3)
    cache.put(0, row_kv(1, 2, 3))
    cache.put(1, row_kv(7))
    columns = cache.capacity
    for token in range(columns):  # past the end of the buffer
        cache.reserve(2, 0)
        append(cache, 10 + token, 500 + token)
    assert cache.capacity > columns
    cache.reserve(40, 2 * columns)  # more rows, and one longer than all before
    assert cache.row_capacity >= 40 and cache.end == cache.window == 2 * columns
    assert contents(cache, 0, 3 + columns) == [1, 2, 3, *range(10, 10 + columns)]
    assert contents(cache, 1, 1 + columns) == [7, *range(500, 500 + columns)]


def test_views_given_to_attention_are_the_visible_columns_only():
    cache = RowCache(2)
    cache.reserve(2, 4)
    cache.put(0, row_kv(1, 2, 3, 4))
    cache.put(1, row_kv(8, 9))
    cache.start = 2
    keys, values = cache.cache.update(torch.full((2, 3, 1, 4), 5.0), torch.zeros(2, 3, 1, 4), 0)
    assert keys[:, 0, :, 0].tolist() == [[3, 4, 5], [8, 9, 5]]
    assert values[:, 0, :, 0].tolist() == [[-3, -4, 0], [-8, -9, 0]]
    assert cache.cache.get_seq_length() == 2
    assert cache.cache.get_mask_sizes(1, 0) == (3, 0)


def test_buffers_go_with_the_last_name_of_their_cache():
    """Not when Python next looks for cycles, which it does by the number of objects."""
    gc.disable()
    try:
        cache = RowCache(1, rows=2, past=0, new=4)
        cache.layers[0].allocate(1, 2, torch.float32, torch.device("cpu"))
        assert cache.layers[0].data is not None
        buffer = weakref.ref(cache.layers[0].data)
        owner = weakref.ref(cache)
        del cache
        assert owner() is None and buffer() is None
    finally:
        gc.enable()


def test_unwritten_columns_are_finite():
    """A masked value takes part as 0 * value, which is nan for nan and inf."""
    garbage = torch.full((64, 1024), torch.nan)
    del garbage
    cache = RowCache(1)
    cache.reserve(3, 5)
    cache.put(1, row_kv(1, 2, layers=1))
    assert all(torch.isfinite(kv).all() for row in range(3) for kv in cache.view(row, 0, cache.end))


def test_move_copies_rows_over_those_that_left():
    cache = RowCache(2)
    cache.reserve(4, 2)
    for row in range(4):
        cache.put(row, row_kv(10 * row, 10 * row + 1))
    cache.move([3, 2], [0, 1])
    assert [contents(cache, row, 2) for row in (0, 1)] == [[30, 31], [20, 21]]


def test_window_widens_for_a_longer_row_without_a_copy():
    cache = RowCache(2)
    cache.reserve(1, 6)
    cache.put(0, row_kv(1, 2, 3, 4, 5, 6))
    cache.start = 4
    buffer = cache.layers[0].data
    cache.reserve(2, 5)
    assert (cache.start, cache.end, cache.layers[0].data is buffer) == (1, 6, True)


def test_store_finds_the_longest_row_that_the_prompt_starts_with():
    store = PrefixStore(100)
    store.put([1, 2], row_kv(1))
    store.put([1, 2, 3, 4], row_kv(1, 2, 3))
    store.put([9, 2, 3, 4], row_kv(9, 2, 3))
    assert store.take([1, 2, 3]) is not None  # only [1, 2] is a prefix of it
    found = store.take([1, 2, 3, 4, 5, 6])
    assert found is not None and found[0].shape == (2, 3, 3, 4)
    assert found[0][0, 0, :, 0].tolist() == [1, 2, 3]
    assert store.take([1, 2, 3, 4, 5, 6]) is None  # each is handed out once
    assert store.take([9, 2, 3, 5]) is None
    assert store.tokens == 4


def test_store_hands_a_row_to_each_sibling_that_sampled_it():
    store = PrefixStore(100)
    store.put([1, 2], row_kv(1))
    store.put([1, 2], row_kv(1))
    assert store.tokens == 2
    assert [store.take([1, 2, 3]) is None for _ in range(3)] == [False, False, True]


def test_store_copies_what_it_keeps():
    kv = row_kv(1, 2)
    store = PrefixStore(100)
    store.put([5, 6, 7], kv)
    kv[0].zero_()
    found = store.take([5, 6, 7, 8])
    assert found is not None and found[0][0, 0, :, 0].tolist() == [1, 2]


def test_store_drops_the_oldest_beyond_its_budget():
    store = PrefixStore(5)
    store.put([1, 1], row_kv(1))
    store.put([2, 2], row_kv(2))
    store.put([3, 3], row_kv(3))
    assert store.tokens == 4
    assert store.take([1, 1, 0]) is None
    assert store.take([2, 2, 0]) is not None
    store.put([4] * 6, row_kv(*[4.0] * 5))  # larger than everything allowed
    assert store.tokens == 2
    store.clear()
    assert store.take([3, 3, 0]) is None and store.tokens == 0
