"""Keys and values of running and of waiting trajectories.

transformers' DynamicCache copies the whole cache for every token. Here the rows of a batch share
over-allocated buffers that are written in place, one column of all rows per token:

    column   0      start                  end    capacity
    row 0    .  .   k  k  k  k  k  k  k  k  |  free
    row 1    .  .   .  .  .  .  k  k  k  k  |  free

Every row is contiguous and ends at `end`, as with left padding, so that rows of any length can
join and leave, and so that distances between columns are distances between positions: sliding
windows stay right. Only [start, end) is ever read; columns before a row's first are masked.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from zerosearch.core.errors import InputError

# Columns allocated beyond those needed: one copy of all rows for every so many tokens.
_SPARE_COLUMNS = 128
_ROWS_MULTIPLE = 16

# Per layer, keys and values [2, key heads, tokens, head dim].
RowKV = list[torch.Tensor]


class _BufferLayer(CacheLayerMixin):
    """One layer's buffer [2, rows, key heads, capacity, head dim] as transformers wants it."""

    is_sliding = False

    def __init__(self, owner: RowCache) -> None:
        super().__init__()
        # a cycle would keep the buffers until Python happens to look for cycles, gigabytes later
        self._owner: RowCache = weakref.proxy(owner)
        self.data: torch.Tensor | None = None

    def allocate(self, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make the buffer; what is masked but never written must be finite, as 0 * nan is nan."""
        owner = self._owner
        shape = (2, owner.row_capacity, heads, owner.capacity, width)
        self.data = torch.empty(shape, dtype=dtype, device=device)
        self.data[:, :, :, : owner.zeroed].zero_()
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate for keys and values [B, key heads, Q, head dim]."""
        if key_states.shape != value_states.shape:
            raise InputError(
                f"keys {tuple(key_states.shape)} and values {tuple(value_states.shape)} differ in "
                "shape: the transformers generator cannot keep them; use another architecture"
            )
        device = key_states.device
        # Under autocast rotary embeddings leave the keys in float32, attention then casts them.
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else key_states.dtype
        self.allocate(key_states.shape[1], key_states.shape[3], dtype, device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, key heads, Q, head dim] at `end`; return views of everything visible."""
        if self.data is None:
            self.lazy_initialization(key_states, value_states)
        assert self.data is not None
        rows, start, end = key_states.shape[0], self._owner.start, self._owner.end
        stop = end + key_states.shape[2]
        self.data[0, :rows, :, end:stop] = key_states
        self.data[1, :rows, :, end:stop] = value_states
        return self.data[0, :rows, :, start:stop], self.data[1, :rows, :, start:stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Visible columns including the new ones, and the offset of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Visible columns before the new ones."""
        return self._owner.window

    def get_max_length(self) -> int:
        """No bound of its own."""
        return -1


class RowCache:
    """The rows of one batch; `cache` is what the model is called with.

    Args:
        num_layers: layers of the model.
        rows: rows to make room for.
        past: columns that count as visible from the start, zeros until something is put there.
        new: columns that one forward of all `rows` is going to fill.
    """

    def __init__(self, num_layers: int, rows: int = 0, past: int = 0, new: int = 0) -> None:
        self.row_capacity, self.capacity = rows, past + new
        self.start, self.end = 0, past
        self.zeroed = past  # columns to fill with zeros: those that may be read unwritten
        self.layers = [_BufferLayer(self) for _ in range(num_layers)]
        self.cache = Cache(layers=list(self.layers))

    @property
    def window(self) -> int:
        """Visible columns."""
        return self.end - self.start

    def reserve(self, rows: int, window: int) -> None:
        """Make room for `rows`, for `window` columns before `end`, and for a free one after it.

        A buffer that is too small is replaced layer by layer, so that the peak is one layer more.
        """
        if rows <= self.row_capacity and window <= self.end < self.capacity:
            self.start = min(self.start, self.end - window)
            return
        old_start, old_end, old_rows = self.start, self.end, self.row_capacity
        kept, window = self.window, max(self.window, window)
        if rows > old_rows:
            self.row_capacity = -(-rows // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
        self.capacity = window + max(_SPARE_COLUMNS, window // 4)
        self.zeroed = self.capacity
        self.start, self.end = 0, window
        for layer in self.layers:
            old, layer.data = layer.data, None
            if old is None:
                continue
            layer.allocate(old.shape[2], old.shape[4], old.dtype, old.device)
            assert layer.data is not None
            layer.data[:, :old_rows, :, window - kept : window] = old[..., old_start:old_end, :]

    def put(self, row: int, kv: RowKV, stop: int | None = None) -> None:
        """Copy [2, key heads, tokens, head dim] per layer so that it ends before column `stop`."""
        stop = self.end if stop is None else stop
        for layer, layer_kv in zip(self.layers, kv, strict=True):
            if layer.data is None:
                layer.allocate(
                    layer_kv.shape[1], layer_kv.shape[3], layer_kv.dtype, layer_kv.device
                )
            assert layer.data is not None
            layer.data[:, row, :, stop - layer_kv.shape[2] : stop] = layer_kv

    def view(self, row: int, first: int, stop: int) -> RowKV:
        """Columns [first, stop) of a row, sharing memory with the buffer."""
        return [
            layer.data[:, row, :, first:stop] for layer in self.layers if layer.data is not None
        ]

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy the visible columns of the rows `sources` over those of the rows `targets`."""
        for layer in self.layers:
            if sources and layer.data is not None:
                visible = layer.data[..., self.start : self.end, :]
                visible[:, targets] = visible[:, sources]


@dataclass(slots=True)
class _StoredRow:
    kv: RowKV
    uses: int


class PrefixStore:
    """KV of finished turns, found again by the token ids that the next turn's prompt starts with.

    Args:
        budget_tokens: tokens kept at most; the least recently stored go first.
    """

    def __init__(self, budget_tokens: int) -> None:
        self._budget = budget_tokens
        self._rows: OrderedDict[tuple[int, ...], _StoredRow] = OrderedDict()
        # (length, last id) of what is stored: spares a look-up of every prefix of a prompt.
        self._ends: Counter[tuple[int, int]] = Counter()
        self.tokens = 0

    def put(self, ids: list[int], kv: RowKV) -> None:
        """Keep a finished row.

        Args:
            ids: its token ids [n], the last sampled one included.
            kv: views of its KV [2, key heads, n - 1, head dim] per layer, copied here: the last
                token was sampled but never read by the model.
        """
        key = tuple(ids)
        if len(key) > self._budget:
            return
        stored = self._rows.get(key)
        if stored is not None:  # siblings that sampled the same: each will ask for it once
            stored.uses += 1
            self._rows.move_to_end(key)
            return
        self._rows[key] = _StoredRow([layer_kv.clone() for layer_kv in kv], uses=1)
        self._ends[len(key), key[-1]] += 1
        self.tokens += len(key)
        while self.tokens > self._budget:
            self._forget(next(iter(self._rows)))

    def take(self, ids: list[int]) -> RowKV | None:
        """KV of the longest stored row that `ids` starts with; each is handed out once per put."""
        for length in range(len(ids), 0, -1):
            if (length, ids[length - 1]) not in self._ends:
                continue
            key = tuple(ids[:length])
            stored = self._rows.get(key)
            if stored is not None:
                stored.uses -= 1
                if stored.uses == 0:
                    self._forget(key)
                return stored.kv
        return None

    def clear(self) -> None:
        """Drop everything."""
        self._rows.clear()
        self._ends.clear()
        self.tokens = 0

    def _forget(self, key: tuple[int, ...]) -> None:
        del self._rows[key]
        end = (len(key), key[-1])
        self._ends[end] -= 1
        if self._ends[end] == 0:
            del self._ends[end]
        self.tokens -= len(key)
