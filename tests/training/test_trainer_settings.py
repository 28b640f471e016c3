"""What the modules ask of any trainer: no inference mode, float32 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.loops import utilities
from lightning.pytorch.plugins.environments import LightningEnvironment
from peft import LoraConfig

from tests.helpers import tuning
from tests.helpers.models import save_policy_folder
from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import make_data, make_questions, make_training
from tests.helpers.words import save_word_policy
from zerosearch.policy.source import PolicySource
from zerosearch.training.sharded_strategy import FullyShardedStrategy
from zerosearch.training.trainer_settings import check_precision, prepare_trainer

Made = tuple[LightningModule, LightningDataModule]


def search_policy(folder: Path) -> Made:
    save_word_policy(folder / "policy")
    questions = make_questions(2)
    return make_training(policy=PolicySource(path=str(folder / "policy"))), make_data(
        questions, held_out=questions
    )


def simulator(folder: Path) -> Made:
    source = PolicySource(path=str(save_policy_folder(folder / "policy", bos=True)))
    data = tuning.make_data(tuning.write_rows(folder / "rows.jsonl"))
    return tuning.make_module(source, data, fidelity_examples=2), data


@pytest.fixture
def with_nccl(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lightning chooses how to evaluate as it does where the backend is NCCL."""
    monkeypatch.setattr(utilities, "_distributed_is_initialized", lambda: False)
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")  # put back afterwards
        monkeypatch.delenv(name)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("with_nccl")
@pytest.mark.parametrize("made", [search_policy, simulator])
def test_a_sharded_model_is_evaluated_with_any_backend(
    made: Callable[[Path], Made], tmp_path: Path
) -> None:
    modes: list[tuple[bool, bool]] = []
    module, data = made(tmp_path)
    test_step = module.test_step

    def watched(*arguments: Any) -> None:
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        test_step(*arguments)

    module.test_step = watched
    trainer = make_trainer(
        callbacks=[],
        strategy=FullyShardedStrategy(),
        plugins=[LightningEnvironment()],
    )
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    assert modes == [(False, False)]


@pytest.mark.parametrize("made", [search_policy, simulator])
@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "16-mixed", "64-true"])
def test_a_precision_that_trains_other_weights_is_refused(
    made: Callable[[Path], Made], precision: Any, tmp_path: Path
) -> None:
    module, data = made(tmp_path)
    trainer = make_trainer(callbacks=[], precision="32-true")
    trainer.strategy.precision_plugin.precision = precision  # some need a GPU
    with pytest.raises(ValueError, match=rf"trainer.precision={precision}: .*; use bf16-mixed"):
        trainer.fit(module, data)
    assert module.model is None, "before a model is loaded"


def test_what_cuda_graphs_write_to_is_not_freed_between_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of vLLM's engine are made in the first evaluation and run in all that follows."""
    freed: list[str] = []
    monkeypatch.setattr(
        torch._C, "_cuda_clearCublasWorkspaces", lambda: freed.append("workspaces"), raising=False
    )
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append("cache"))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # set by Lightning
    trainer = make_trainer(callbacks=[])
    trainer.strategy.accelerator = CUDAAccelerator()
    prepare_trainer(trainer, PolicySource(path=str(tmp_path)))
    assert isinstance(trainer.accelerator, CUDAAccelerator)
    trainer.accelerator.setup(trainer)
    trainer.accelerator.teardown()
    assert freed == ["cache", "cache"]


@pytest.mark.parametrize("name", [None, 32, "32-true", "bf16", "bf16-mixed"])
def test_precisions_that_keep_float32_weights(name: Any) -> None:
    check_precision(name)


def test_a_head_that_is_trained_beside_a_bfloat16_base_needs_autocast(tmp_path: Path) -> None:
    save_word_policy(tmp_path)
    head = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    source = PolicySource(path=str(tmp_path), dtype="bfloat16", lora=head)
    data = make_data(make_questions(2))
    message = r"modules_to_save=\['lm_head'\].*model.dtype=bfloat16.*use trainer.precision=bf16-mix"
    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=[], val_every=None).fit(make_training(policy=source), data)
    module = make_training(policy=source)
    make_trainer(1, callbacks=[], val_every=None, precision="bf16-mixed").fit(module, data)
    assert module.policy_step == 1
