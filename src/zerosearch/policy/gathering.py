"""Sharded tensors made whole, many of them by one collective."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

BUCKET_BYTES = 256 * 2**20  # of whole tensors in one collective; a larger tensor goes alone
_ALIGNMENT = 16  # bytes; no dtype needs more


@dataclass(kw_only=True, slots=True, frozen=True)
class _Part:
    """A tensor of which each rank has some rows."""

    name: str
    tensor: DTensor
    sent: torch.dtype  # in which ranks send it each other
    wanted: torch.dtype  # in which it comes out

    @property
    def rank_bytes(self) -> int:
        """That each rank sends; the last ranks may have fewer rows, and fill up."""
        rows = -(-self.tensor.shape[0] // self.tensor.device_mesh.size())
        return rows * self.tensor.shape[1:].numel() * self.sent.itemsize

    @property
    def whole_bytes(self) -> int:
        return self.rank_bytes * self.tensor.device_mesh.size()


def gather_all(
    tensors: Iterable[tuple[str, Tensor]], *, dtype: torch.dtype | None, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors in the order in which they come; a collective where they are sharded.

    At any time there are `BUCKET_BYTES` of them beside those that the caller keeps, or the largest
    one. Shards are cast before they are sent, where that makes them smaller.

    Args:
        tensors: names and detached tensors, whole or sharded over one mesh.
        dtype: of the floating-point tensors that come out; None keeps their own.
        device: where sharded ones become whole, the current one of this thread; their ranks
            communicate there.

    Yields:
        Name and tensor; one that was whole may share memory with what it was.
    """
    bucket: list[_Part] = []
    for name, tensor in tensors:
        wanted = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        if not isinstance(tensor, DTensor):
            yield from _gathered(bucket, device)
            bucket = []
            yield name, tensor.to(wanted)
            continue
        assert tensor.placements == (Shard(0),), "how FSDP2 cuts"
        sent = min(wanted, tensor.dtype, key=lambda each: each.itemsize)
        part = _Part(name=name, tensor=tensor, sent=sent, wanted=wanted)
        if sum(each.whole_bytes for each in bucket) + part.whole_bytes > BUCKET_BYTES:
            yield from _gathered(bucket, device)
            bucket = []
        bucket.append(part)
    yield from _gathered(bucket, device)


def _gathered(bucket: Sequence[_Part], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    if not bucket:
        return
    mesh, size, starts = bucket[0].tensor.device_mesh, 0, []
    for part in bucket:
        starts.append(-(-size // _ALIGNMENT) * _ALIGNMENT)
        size = starts[-1] + part.rank_bytes
    own = torch.empty(size, dtype=torch.uint8, device=device)
    for part, start in zip(bucket, starts, strict=True):
        rows = part.tensor.to_local().flatten()
        own[start : start + rows.numel() * part.sent.itemsize].view(part.sent).copy_(rows)
    every = DTensor.from_local(own, mesh, (Shard(0),)).full_tensor().view(mesh.size(), size)
    del own
    for part, start in zip(bucket, starts, strict=True):
        # of a tensor that is alone this is no copy; what fills up is at the end
        flat = every[:, start : start + part.rank_bytes].reshape(-1).view(part.sent)
        shape = part.tensor.shape
        yield part.name, flat[: shape.numel()].view(shape).to(part.wanted)
