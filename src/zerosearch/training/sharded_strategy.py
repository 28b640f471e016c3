"""The Lightning strategy of `trainer=fsdp`: every rank keeps 1/N of the model (FSDP2)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Positive
from zerosearch.policy.checkpoints import (
    check_same_model,
    check_same_optimizers,
    is_sharded_checkpoint,
    naming_damage,
    optimizer_by_name,
    read_checkpoint,
    saved_shapes,
    saved_state_names,
    shapes_of,
    state_names,
)
from zerosearch.policy.reference import expect_reference
from zerosearch.policy.sharding import Sharding, reshard
from zerosearch.training.rank_watch import WatchedProcesses

ComputeDtype = Literal["float32", "bfloat16"]  # in float16 gradients would have to be scaled


class FullyShardedStrategy(WatchedProcesses, ModelParallelStrategy):
    """Shards weights, gradients and optimizer states over all processes, on GPUs or CPUs.

    Lightning's own strategy knows no dtypes and no offloading: it leaves sharding to the module,
    which asks here how (`sharding`). The trainer's precision stays `32-true`, which is that of
    the weights kept; what they are computed in is `param_dtype`.

    Gradients are reduced after every micro-batch. Reducing only after the last one would save
    traffic, but keep the whole model's gradients on every rank until then.

    Args:
        param_dtype: of gathered weights and of the computation.
        reduce_dtype: of the sum of gradients over ranks.
        cpu_offload: keep shards, gradients and optimizer states in host memory.
        reshard_after_forward: False keeps each layer's weights gathered until its backward pass:
            less traffic, more memory.
        timeout_minutes: how long a rank waits for the others in one collective.

    Raises:
        InputError: a dtype or the timeout makes no sense.
    """

    def __init__(
        self,
        *,
        param_dtype: ComputeDtype = "bfloat16",
        reduce_dtype: ComputeDtype = "float32",
        cpu_offload: bool = False,
        reshard_after_forward: bool = True,
        timeout_minutes: Positive = 30,
    ) -> None:
        for name, value in (("param_dtype", param_dtype), ("reduce_dtype", reduce_dtype)):
            if value not in get_args(ComputeDtype):
                raise InputError(
                    f"trainer.strategy.{name}={value}: gradients are not scaled here; use one of "
                    f"{', '.join(get_args(ComputeDtype))}"
                )
        if timeout_minutes <= 0:
            raise InputError(
                f"trainer.strategy.timeout_minutes={timeout_minutes}: give minutes above 0"
            )
        super().__init__(tensor_parallel_size=1, timeout=timedelta(minutes=timeout_minutes))
        self.param_dtype: torch.dtype = getattr(torch, param_dtype)
        self.reduce_dtype: torch.dtype = getattr(torch, reduce_dtype)
        self.cpu_offload = cpu_offload
        self.reshard_after_forward = reshard_after_forward

    @property
    def sharding(self) -> Sharding:
        """How the module has to spread its models; known once the processes have met."""
        return Sharding(
            mesh=self.device_mesh["data_parallel"],
            device=self.root_device,
            param_dtype=self.param_dtype,
            reduce_dtype=self.reduce_dtype,
            cpu_offload=self.cpu_offload,
            reshard_after_forward=self.reshard_after_forward,
        )

    def _get_process_group_backend(self) -> str:
        if self.cpu_offload and self.root_device.type == "cuda":
            return "cpu:gloo,cuda:nccl"  # the norm of offloaded gradients is summed on CPUs
        return super()._get_process_group_backend()

    def setup_environment(self) -> None:
        if self.precision_plugin.precision != "32-true":
            raise InputError(
                f"trainer.precision={self.precision_plugin.precision} under trainer=fsdp: leave it "
                "at 32-true (float32 weights are kept) and set trainer.strategy.param_dtype, in "
                "which they are computed"
            )
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Let optimizers be made over shards."""
        self._reshard()
        super().setup_optimizers(trainer)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of this rank's shards by the names of the parameters."""
        self._reshard()
        return super().optimizer_state(optimizer)

    def optimizer_step(self, optimizer: Optimizer, *arguments: Any, **more: Any) -> Any:
        """Update the shards; what was gathered before would be out of date."""
        self._reshard()
        return super().optimizer_step(optimizer, *arguments, **more)

    def _reshard(self) -> None:
        """Take back the root's weights, which a pass without gradients has left gathered.

        Until then the model's parameters are not those of its optimizer. Saving weights needs no
        call: FSDP2 does the same before every `state_dict`.
        """
        assert self.model is not None
        reshard(self.model)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Restore module and optimizers from a folder of any number of ranks, or from a file.

        Raises:
            InputError: the checkpoint is not whole, or of another model or optimizer.
        """
        path = Path(self.broadcast(checkpoint_path))
        assert self.model is not None
        if is_sharded_checkpoint(path):
            saved = saved_shapes(path)
            expect_reference(self.model, saved)
            check_same_model(saved, shapes_of(self.model.state_dict()))
            self._check_optimizers(saved_state_names(path))
            with naming_damage(path):
                return super().load_checkpoint(path, weights_only=True)
        checkpoint = read_checkpoint(path, mmap=True)
        tensors = checkpoint.pop("state_dict", {})
        expect_reference(self.model, tensors)
        check_same_model(shapes_of(tensors), shapes_of(self.model.state_dict()))
        states = checkpoint["optimizer_states"]
        self._check_optimizers([state_names(state) for state in states])
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self.model, tensors, options=options)
        # no optimizers where the run only evaluates
        for optimizer, state in zip(self.optimizers, states, strict=False):
            named = optimizer_by_name(state, self.model, optimizer)
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint

    def _check_optimizers(self, saved: list[set[str]]) -> None:
        assert self.model is not None
        present = [
            state_names(get_optimizer_state_dict(self.model, optimizer))
            for optimizer in self.optimizers
        ]
        if present:  # none where the run only evaluates
            check_same_optimizers(saved, present)

    def model_to_device(self) -> None:
        """Tell the module its device; its tensors are there, but for offloaded shards."""
        _update_properties(self.lightning_module, device=self.root_device)  # type: ignore[arg-type]


def sharding_of(module: LightningModule) -> Sharding | None:
    """How a module has to spread its models; None where every process keeps them whole."""
    if module.device_mesh is None:
        return None
    strategy = module.trainer.strategy
    assert isinstance(strategy, FullyShardedStrategy)
    return strategy.sharding
