"""Threads compute on the policy's GPU, ranks send objects in host memory: a CPU plays the GPUs."""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.helpers.models import make_model, make_tokenizer
from tests.helpers.policies import greedy, run
from tests.helpers.ranks import run_ranks
from tests.helpers.scripted_vllm import ScriptedLink, ScriptedVLLM
from zerosearch.core import devices, distributed
from zerosearch.core.devices import device_thread, numbered_device, take_device
from zerosearch.core.distributed import gather_objects, object_group
from zerosearch.generation.vllm import generator as vllm_generator
from zerosearch.generation.vllm import sync as vllm_sync
from zerosearch.generation.vllm.generator import VLLMGenerator
from zerosearch.generation.vllm.policy import VLLMPolicy
from zerosearch.generation.vllm.server_generator import VLLMServerGenerator
from zerosearch.generation.vllm.sync import ServerSync
from zerosearch.search.embedding import E5Encoder
from zerosearch.training.background import Background

SOURCE = Path(devices.__file__).parents[1]
OWN = torch.device("cuda", 1)  # the GPU of this process


class Cuda:
    """What torch.cuda knows of threads: each has a current GPU, at first 0."""

    def __init__(self) -> None:
        self._current = threading.local()
        self.used = 0  # times that some thread was found on the right GPU
        self.waits = 0  # for all that was asked of the policy's GPU

    def set_device(self, device: torch.device) -> None:
        self._current.index = device.index

    def current_device(self) -> int:
        return getattr(self._current, "index", 0)

    def synchronize(self, device: torch.device) -> None:
        assert device == OWN
        self.waits += 1

    def check(self) -> None:
        """Refuse another GPU than the policy's, and the main thread, which is training."""
        assert threading.current_thread() is not threading.main_thread()
        assert self.current_device() == OWN.index, threading.current_thread().name
        self.used += 1

    def checking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any, **named: Any) -> Any:
            self.check()
            return function(*arguments, **named)

        return checked


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    for name in ("set_device", "current_device", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return made


def policy_on_gpu() -> Any:
    """A model that takes itself to be on the GPU; its tensors are not."""
    model: Any = make_model(1)
    model.zerosearch_compute_device = OWN
    return model


def test_weights_are_sent_from_the_policys_gpu(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy_on_gpu()
    policy = VLLMPolicy(model, make_tokenizer(), dtype="auto", lora="merged")
    server = ScriptedVLLM("http://127.0.0.1:1", model, policy.tokens.tokenizer)
    link = ScriptedLink()
    link.send = cuda.checking(link.send)  # type: ignore[method-assign]

    async def connect(workers: Any, device: torch.device, thread: Any) -> None:
        assert device == OWN
        thread.submit(cuda.check).result()
        server.link = link  # type: ignore[assignment]

    monkeypatch.setattr(server, "connect", connect)
    monkeypatch.setattr(VLLMPolicy, "weights", cuda.checking(VLLMPolicy.weights))
    monkeypatch.setattr(vllm_sync, "gather_objects", cuda.checking(gather_objects))
    run(ServerSync([server], policy, timeout_s=1).run(1))
    assert link.names and cuda.used == len(link.names) + 5  # a start, a link, three agreements


def test_vllm_in_this_process_runs_on_the_policys_gpu(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shared:
        """The engine; every method is called on its thread."""

        failure = None
        all_released = True

        def __init__(self, settings: Any, *_: Any) -> None:
            cuda.check()
            assert settings.device == OWN

        def load(self, policy: VLLMPolicy, version: int) -> None:
            cuda.check()
            assert cuda.waits == 1, "the optimizer's update of the weights is not awaited"

        def step(self, news: Any) -> list[Any]:
            cuda.check()
            raise RuntimeError("enough")

        sleep = shutdown = lambda self: cuda.check()

        def abort(self, names: Any) -> None:
            cuda.check()

    monkeypatch.setattr(vllm_generator, "SharedEngine", Shared)
    monkeypatch.setattr(vllm_generator, "check_installed", lambda: "0.32.0")
    model = policy_on_gpu()
    generator = VLLMGenerator(max_model_len=64)
    generator.bind(model, make_tokenizer())

    async def rollout() -> None:
        await generator.sync_weights(model)
        assert cuda.waits == 2, "the next update would not await that these are read"
        with pytest.raises(RuntimeError, match="enough"):
            await generator.generate([1], greedy(1))
        await generator.release()

    run(rollout())
    generator.close()
    assert cuda.used == 6  # each method once


def test_what_runs_beside_training_does_on_the_policys_gpu(cuda: Cuda) -> None:
    async def rollout() -> None:
        cuda.check()

    Background(rollout(), OWN).result()
    assert cuda.used == 1


def test_an_encoder_computes_on_its_gpu_in_whatever_thread(cuda: Cuda) -> None:
    class Texts(dict):
        def to(self, device: torch.device) -> Texts:
            cuda.check()
            raise RuntimeError("enough")

    encoder = E5Encoder.__new__(E5Encoder)
    encoder._device, encoder._max_tokens = OWN, 8
    encoder._tokenizer = lambda *_, **__: Texts()
    with device_thread("search", torch.device("cpu")) as thread, pytest.raises(RuntimeError):
        thread.submit(encoder._forward, ["a"]).result()
    assert cuda.used == 1


def test_a_gpu_without_a_number_is_the_threads_own(cuda: Cuda) -> None:
    with device_thread("own", OWN) as thread:
        for name, device in (("auto", OWN), ("cuda", OWN), ("cuda:3", torch.device("cuda", 3))):
            assert thread.submit(numbered_device, name).result() == device
    assert numbered_device("cpu") == torch.device("cpu")
    take_device(torch.device("cpu"))
    assert cuda.current_device() == 0


# -- objects -------------------------------------------------------------------------------------


def gather_as_rank(rank: int, world_size: int, folder: str) -> None:
    """Ranks that have met as NCCL lets them: CPU tensors are refused, and there is no GPU."""

    def create(store: Any, rank: int, size: int, timeout: Any) -> Any:
        return dist.ProcessGroupGloo(store, rank, size, timeout)

    dist.Backend.register_backend("gpuonly", create, devices=["cuda"])
    dist.init_process_group("gpuonly")
    with device_thread("weights", torch.device("cpu")) as thread:
        with pytest.raises(AssertionError):  # its ranks might make groups in another order
            thread.submit(object_group).result()
        group = object_group()
        found = thread.submit(gather_objects, {"rank": rank}).result()
    assert group is object_group() and dist.get_backend(group) == "gloo"
    timeout: Any = distributed._timeout(group)
    assert timeout == distributed._timeout(dist.group.WORLD)
    torch.save([found, gather_objects(rank)], f"{folder}/{rank}.pt")


def test_ranks_that_met_over_nccl_send_objects_over_gloo(tmp_path: Path) -> None:
    run_ranks(2, gather_as_rank, str(tmp_path))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == [[{"rank": 0}, {"rank": 1}], [0, 1]]


def test_a_server_generator_makes_the_group_in_the_main_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[threading.Thread] = []
    monkeypatch.setattr(vllm_sync, "object_group", lambda: made.append(threading.current_thread()))
    generator = VLLMServerGenerator(endpoints=["http://127.0.0.1:1"])
    generator.bind(make_model(1), make_tokenizer())
    assert made == [threading.main_thread()]


# -- the whole source ----------------------------------------------------------------------------


def parsed(*words: str) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Each node of the files that have one of the words, with its file and its parent."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if any(word in text for word in words):
            for parent in ast.walk(ast.parse(text)):
                for node in ast.iter_child_nodes(parent):
                    yield str(path.relative_to(SOURCE)), node, parent


def test_no_gpu_is_named_without_its_number() -> None:
    found = []
    for file, node, parent in parsed("cuda", "device_type"):
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Constant) and node.value == "cuda":
            compared = isinstance(parent, ast.Compare | ast.Tuple)  # a type, or a choice
            numbered = isinstance(parent, ast.Call) and len(parent.args) == 2
            if not compared and not numbered and file != "core/devices.py":
                found.append(where)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            mesh = any(isinstance(a, ast.Attribute) and a.attr == "device_type" for a in node.args)
            if (node.func.attr == "cuda" and not node.args) or (node.func.attr == "to" and mesh):
                found.append(where)
    assert not found, "say which GPU: see zerosearch.core.devices"


# Threads that were made otherwise than by `device_thread`, and why they may be.
OTHER_THREADS = {
    "core/devices.py": "device_thread",
    "training/background.py": "takes its device itself",
    "search/batching.py": "what computes there takes its device itself: the encoder",
    "simulator/checks.py": "asks servers",
    "core/hub.py": "asks the hub",
    "core/memory.py": "reads how much memory the process holds",
    "core/bounded.py": "calls a reward function of the user's",
    "command_line/job_processes.py": "waits for the processes of jobs",
}


def test_threads_that_compute_are_made_on_their_device() -> None:
    found, makers = set(), ("ThreadPoolExecutor", "Thread", "to_thread")
    for file, node, _ in parsed(*makers):
        called = node.func if isinstance(node, ast.Call) else None
        name = getattr(called, "id", getattr(called, "attr", None))
        if name in makers:
            found.add(file)
    assert found == OTHER_THREADS.keys()
