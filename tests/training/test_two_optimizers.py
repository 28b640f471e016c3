"""A policy and a critic, each with an optimizer, in checkpoints of one and of two ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.helpers.models import make_model
from tests.helpers.ranks import run_ranks
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.policy.critic import load_critic, token_values
from zerosearch.policy.loading import load_policy
from zerosearch.policy.logprobs import token_logprobs
from zerosearch.policy.source import PolicySource
from zerosearch.policy.weight_stream import gather
from zerosearch.training.sharded_strategy import FullyShardedStrategy, sharding_of

IDS = torch.arange(3, 15).view(2, 6)


class ActorCritic(LightningModule):
    """Two models, two optimizers, and one update of each per step, of different sizes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.source = PolicySource(path=str(folder))
        self.model: nn.Module | None = None
        self.critic: nn.Module | None = None

    def configure_model(self) -> None:
        if self.model is None:
            sharding = sharding_of(self)
            self.model = load_policy(self.source, sharding)
            self.critic = load_critic(self.source, sharding)

    def configure_optimizers(self) -> Any:
        assert self.model is not None and self.critic is not None
        return [
            torch.optim.AdamW(self.model.parameters(), lr=1e-3),
            torch.optim.AdamW(self.critic.parameters(), lr=1e-2, betas=(0.8, 0.9)),
        ]

    def training_step(self, batch: Tensor, batch_index: int) -> None:
        assert self.model is not None and self.critic is not None
        optimizers: Any = self.optimizers()
        mask = torch.ones_like(IDS, dtype=torch.bool)
        select = mask.clone()
        select[:, 0] = False
        logprobs = token_logprobs(self.model, IDS, mask, select).logprobs
        values = token_values(self.critic, IDS, mask, select)
        for loss, optimizer in zip(
            (-logprobs.mean(), (values - 1).square().mean()), optimizers, strict=True
        ):
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()


def fit(
    rank: int,
    world_size: int,
    folder: Path,
    steps: int,
    out: str,
    *,
    resume: Path | None = None,
    save: Path | None = None,
    sharded: bool = True,
) -> None:
    """Train to `steps` in all, and leave weights and optimizer states in `out.RANK`."""
    module = ActorCritic(folder)
    settings: dict[str, Any] = {"plugins": [AtomicCheckpointIO()]}
    if sharded:
        settings["strategy"] = FullyShardedStrategy(param_dtype="float32")
        settings["plugins"].append(LightningEnvironment())
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        max_steps=2 * steps,  # Lightning counts updates
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(module, DataLoader(range(8)), ckpt_path=resume)  # type: ignore[arg-type]
    result = {name: gather(p.detach()).clone() for name, p in module.named_parameters()}
    names = {id(p): name for name, p in module.named_parameters()}
    for number, optimizer in enumerate(trainer.optimizers):
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                result[f"{number} {names[id(parameter)]} {key}"] = gather(value).clone()
    torch.save(result, folder / f"{out}.{rank}")
    if save is not None:
        trainer.save_checkpoint(save)


def save_and_load(rank: int, world_size: int, folder: Path) -> None:
    run = partial(fit, rank, world_size, folder)
    run(1, "two", save=folder / "two.ckpt")
    run(1, "two from two", resume=folder / "two.ckpt")
    run(2, "two on from two", resume=folder / "two.ckpt")
    run(2, "two on from one", resume=folder / "one.ckpt")


def assert_same(folder: Path, one: str, other: str, atol: float) -> None:
    expected = torch.load(folder / one)
    for rank in range(2):
        path = folder / f"{other}.{rank}"
        if path.exists():
            found = torch.load(path)
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol, msg=name)


@pytest.mark.timeout(900)  # two processes that import everything, on a busy machine too
def test_both_models_and_optimizers_are_restored_on_one_and_two_ranks(tmp_path: Path) -> None:
    make_model(5).save_pretrained(tmp_path)
    alone = partial(fit, 0, 1, tmp_path, sharded=False)
    alone(1, "one", save=tmp_path / "one.ckpt")
    alone(2, "one on")
    run_ranks(2, save_and_load, tmp_path)
    alone(1, "one from two", resume=tmp_path / "two.ckpt")
    states = torch.load(tmp_path / "two.0")
    assert {name.split()[0] for name in states if " " in name} == {"0", "1"}
    assert states["0 model.model.norm.weight step"] == 1
    for loaded in ("two from two", "one from two"):
        assert_same(tmp_path, "two.0", loaded, atol=0.0)
    for gone_on in ("two on from two", "two on from one"):
        assert_same(tmp_path, "one on.0", gone_on, atol=1e-5)
