"""Flex attention with gradients on a CPU, where torch has a kernel for its forward pass alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex

from zerosearch.policy import flex_attention


@contextmanager
def flex_on_cpu(backend: str | Callable[..., Any] = "aot_eager") -> Iterator[None]:
    """Run the traced graph of flex attention, forward and backward, operator by operator.

    Args:
        backend: of torch.compile, in the place of the one that makes kernels.
    """
    with pytest.MonkeyPatch.context() as patch:
        compiled = torch.compile(torch_flex.flex_attention, backend=backend)
        patch.setattr(flex_attention, "compiled_flex", lambda: compiled)
        patch.setattr(torch_flex, "_validate_device", lambda *_: None)  # refuses gradients
        yield
    torch._dynamo.reset()
