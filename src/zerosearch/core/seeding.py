"""Randomness from position: the same coordinates give the same draw on any rank, at any time."""

from __future__ import annotations

import hashlib
import random


def derive_seed(*coordinates: int | str) -> int:
    """Hash coordinates such as (seed, step, question, sibling, turn) to a 63-bit seed.

    Returns:
        An integer in [0, 2**63) that `random.Random` and `torch.Generator` accept.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in coordinates)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derive_random(*coordinates: int | str) -> random.Random:
    """A `random.Random` seeded by `derive_seed`."""
    return random.Random(derive_seed(*coordinates))
