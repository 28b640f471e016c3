"""Stands in for a vLLM server and the link to it, in this process: answers, and notes, calls."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerosearch.clients.endpoints import CallFailure
from zerosearch.generation.vllm.client import VLLMServer
from zerosearch.policy.architecture import SIZE_FIELDS


def describe_worker(model: PreTrainedModel, **facts: Any) -> dict[str, Any]:
    """What a worker made for this model says of itself."""
    sizes = {name: getattr(model.config, name, None) for name in SIZE_FIELDS}
    return {"rank": 0, "vllm": "0.32.0", "dtype": "float32", "sizes": sizes, "link": None} | facts


class ScriptedLink:
    """Takes weights; `broken` fails at the second one."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.names: list[str] = []
        self.finished = 0

    def send(self, name: str, tensor: Tensor) -> None:
        if self.broken and self.names:
            raise RuntimeError("Connection closed by peer")
        self.names.append(name)

    def finish(self) -> None:
        self.finished += 1


class ScriptedVLLM(VLLMServer):
    """A server made for a model; the facts it tells and the routes that fail can be changed."""

    def __init__(
        self, url: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        super().__init__(url, sync_timeout_s=1)
        self.tokenizer = tokenizer
        self.context = 64
        self.facts = describe_worker(model)
        self.failing: dict[str, CallFailure] = {}  # by the beginning of the route
        self.is_paused = False
        self.version = "default"
        self.scripted_link = ScriptedLink()

    async def connect(
        self, workers: list[dict[str, Any]], device: torch.device, thread: Executor
    ) -> None:
        self.link = self.scripted_link  # type: ignore[assignment]

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> Any:
        for route, failure in self.failing.items():
            if path.startswith(route):
                raise failure
        match path.partition("?")[0]:
            case "/v1/models":
                return {"data": [{"id": "policy", "max_model_len": self.context}]}
            case "/tokenize":
                assert body is not None
                return {"tokens": self.tokenizer.encode(body["prompt"], add_special_tokens=False)}
            case "/collective_rpc":
                return {"results": [self.facts]}
            case "/weight_info":
                return {"weight_version": self.version}
            case "/pause":
                self.is_paused = True
            case "/resume":
                self.is_paused = False
            case "/update_weight_version":
                assert body is not None
                self.version = body["new_version"]
        return {}
