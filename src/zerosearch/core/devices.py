"""Which GPU a thread computes on.

CUDA's current device belongs to a thread: in a new one it is GPU 0, whatever GPU its process trains
on. Whatever says "cuda" without a number there would meet the other ranks on that GPU.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch


def take_device(device: torch.device) -> None:
    """Make a GPU the current one of the calling thread; other devices need nothing."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def await_device(device: torch.device) -> None:
    """Wait until a GPU has done what every thread has asked of it; others are done at once.

    A stream waits for no other one, and vLLM gives its thread a stream of its own: it would read
    weights while the optimizer's update of them is still queued on that of training.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_thread(name: str, device: torch.device) -> ThreadPoolExecutor:
    """One thread whose current GPU is that of a policy.

    Args:
        name: of the thread.
        device: where the policy computes.
    """
    return ThreadPoolExecutor(
        max_workers=1, thread_name_prefix=name, initializer=take_device, initargs=(device,)
    )


def numbered_device(name: str) -> torch.device:
    """The device of a name, GPUs with their number.

    Args:
        name: "auto" is a GPU where there is one; without a number it is the thread's current one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
