"""What the weights of a model are, in a few characters, however they are stored or spread.

A digest of values and not of files: the same weights in other shards, formats or folders are the
same, and what files alone do not show (a revision, a dtype that rounds, the seed of random weights,
a library that draws or de-quantises differently) shows. It is sums of integers, so equal on every
device and number of ranks, and computed where the weights lie: reading 15 GB of files a second time
and hashing them on one core would take half a minute at every start.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from zerosearch.policy.weight_stream import stream_weights

_CHUNK = 1 << 18  # elements under way at a time


@torch.no_grad()
def weight_digest(model: nn.Module) -> str:
    """16 hexadecimal digits of all weights and their names; a collective where they are sharded.

    Args:
        model: causal LM; one that was loaded with fewer bits has the digest of one that holds the
            same values with more of them.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in stream_weights(model):
        digest.update(f"{name} {list(tensor.shape)} {_sum(tensor)}\n".encode())
    return digest.hexdigest()


def _sum(tensor: Tensor) -> int:
    """Sum, modulo 2**64, of one scrambled integer for each value at its place."""
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32).view(torch.int32)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, values in enumerate(tensor.flatten().split(_CHUNK)):
        places = torch.arange(len(values), device=values.device).add_(number * _CHUNK)
        total += _scrambled(places.mul_(1 << 32).add_(values)).sum()
    return int(total)


def _scrambled(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place: one bit of input turns half of the output's.

    Steele et al., OOPSLA 2014; here with signed shifts, which leave it one-to-one.
    """
    x.bitwise_xor_(x >> 30).mul_(-0x40A7B892E31B1A47)
    x.bitwise_xor_(x >> 27).mul_(-0x6B2FB644ECCEEE15)
    return x.bitwise_xor_(x >> 31)
