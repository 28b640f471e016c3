"""Waiting for one call; how calls are tried again is in the tests of the engines."""

from __future__ import annotations

import asyncio
import gc

import pytest

from zerosearch.clients.attempts import ServerFailure, patiently


async def test_what_fails_while_it_is_called_off_is_not_heard_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def call() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise RuntimeError("the connection is gone")

    async def silence(_: float) -> ServerFailure:
        return ServerFailure("http://a", "no sign of life", transient=True)

    with pytest.raises(ServerFailure, match="no sign of life"):
        await patiently(call(), 0.01, silence)
    gc.collect()
    assert not caplog.records, "'Task exception was never retrieved'"
