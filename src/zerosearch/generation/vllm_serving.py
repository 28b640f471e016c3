"""What to run to serve a policy to `VLLMServerGenerator`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zerosearch.generation.vllm_adapter import (
    check_installed,
    server_environment,
    server_flags,
)
from zerosearch.policy.source import PolicySource
from zerosearch.simulator.serving import ServerSettings


def generator_server(
    policy: PolicySource, *, folder: str, extra_args: Sequence[Any] = (), **settings: Any
) -> ServerSettings:
    """Settings of servers whose weights come from the policy that is trained.

    Args:
        policy: gives the server its config and tokenizer; its weights are not loaded.
        folder: takes them.
        extra_args: to vLLM, as they are.
        settings: further fields of `ServerSettings`.

    Raises:
        ValueError: vLLM is missing or of an untried version, the policy cannot be had, or a
            setting is out of range.
    """
    check_installed()
    policy.check()
    config = policy.load_config()
    shutil.rmtree(folder, ignore_errors=True)  # an earlier server's, perhaps of another model
    config.save_pretrained(folder)
    policy.load_tokenizer().save_pretrained(folder)
    if settings.get("dtype", "auto") == "auto" and policy.dtype != "auto":
        settings["dtype"] = policy.dtype
    return ServerSettings(
        model=str(Path(folder).absolute()),
        served_name="policy",
        node="server",
        extra_args=["--load-format", "dummy", *server_flags(), *extra_args],
        environment=server_environment(),
        **settings,
    )
