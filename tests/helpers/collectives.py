"""What this process sends to others, as it happens."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

_LOCAL = ("_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd")


class AllGathers(TorchDispatchMode):
    """Bytes that this thread gives to each all-gather inside the context; others are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # what it does with its shards is seen
        if func.name() not in _LOCAL and func.namespace in ("c10d", "_c10d_functional"):
            assert func.name() == "_c10d_functional::all_gather_into_tensor", func.name()
            part: Tensor = args[0]
            self.sent.append(part.numel() * part.element_size())
        return func(*args, **kwargs or {})
