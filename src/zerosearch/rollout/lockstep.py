"""A gate that lets all episodes of a step go on together, in a fixed order.

Searches come back in an order that nobody controls, and that order decides which trajectories
share a batch of the generator, hence the last digits of their log-probs. Behind this gate a rollout
is a function of what the searches return alone, at the price of waiting for the slowest one.
"""

from __future__ import annotations

import asyncio


class Lockstep:
    """Opens when every episode that still plays has arrived.

    Args:
        players: number of episodes; each either arrives again and again, or leaves once.
    """

    def __init__(self, players: int) -> None:
        self._playing = players
        self._arrived: dict[int, asyncio.Future[None]] = {}

    async def arrive(self, index: int) -> None:
        """Wait for the others; they go on in the order of their indices."""
        gate = asyncio.get_running_loop().create_future()
        self._arrived[index] = gate
        self._open_soon()
        await gate

    def leave(self) -> None:
        """This episode has ended: nobody waits for it any more."""
        self._playing -= 1
        self._open_soon()

    def _open_soon(self) -> None:
        # not at once: the last to arrive would find its gate open and go first
        asyncio.get_running_loop().call_soon(self._open_if_complete)

    def _open_if_complete(self) -> None:
        if len(self._arrived) < self._playing:
            return
        arrived, self._arrived = self._arrived, {}
        for _, gate in sorted(arrived.items()):
            if not gate.done():
                gate.set_result(None)
