"""A simulated search over servers, from the settings of its client and its own in one call."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from zerosearch.clients.chat import ChatClient
from zerosearch.simulator.engine import SimulatedSearch

_OF_THE_CLIENT = set(inspect.signature(ChatClient).parameters)


def simulated_search(endpoints: Sequence[str], model: str, **settings: Any) -> SimulatedSearch:
    """An engine whose simulator runs at `endpoints`."""
    of_client = {name: value for name, value in settings.items() if name in _OF_THE_CLIENT}
    of_engine = {name: value for name, value in settings.items() if name not in _OF_THE_CLIENT}
    return SimulatedSearch(ChatClient(endpoints, model, **of_client), **of_engine)
