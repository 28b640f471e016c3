"""Tuning of a simulator: its loss, its gradient, its data order, its export, its resumption."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from peft import LoraConfig
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.models import save_policy_folder
from tests.helpers.ranks import run_ranks
from tests.helpers.tuning import (
    Watching,
    assert_goes_on_bit_for_bit,
    make_data,
    make_module,
    tune,
    write_rows,
)
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.callbacks.export import PolicyExport
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.callbacks.written_documents import WrittenDocuments
from zerosearch.policy.source import PolicySource
from zerosearch.simulator.prompt import SimulatorPrompt
from zerosearch.training.sharded_strategy import FullyShardedStrategy
from zerosearch.tuning.module import SimulatorTuningModule
from zerosearch.tuning.tuning_set import TuningExample
from zerosearch.types import SearchRequest


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return save_policy_folder(tmp_path / "policy", bos=True)


class Watched(Watching, SimulatorTuningModule):
    """Keeps the gradient and loss of every update."""


def run(policy: Path, rows: Path, *callbacks: Callback, **fields: Any) -> Watched:
    given = ("resume", "start", "strategy", "plugins", "devices")
    trainer = {name: fields.pop(name) for name in given if name in fields}
    lora, poisoned = fields.pop("lora", None), fields.pop("poisoned", frozenset())
    data = make_data(rows, fields.pop("examples_per_step", 6))
    source = PolicySource(path=str(policy), lora=lora)
    module = make_module(source, data, module=Watched, gradient_clip=1e9, **fields)
    assert isinstance(module, Watched)
    module.poisoned = poisoned
    tune(module, data, *callbacks, **trainer)
    return module


def test_the_loss_is_the_cross_entropy_of_the_replies(policy: Path, rows: Path) -> None:
    found = run(policy, rows, steps=1, examples_per_step=5)
    data = make_data(rows, 5)
    model = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    data.trainer.strategy.connect(found)
    found.policy_step = 0
    examples = next(iter(data.train_dataloader())).examples
    total, count = torch.zeros(()), 0
    for example in examples:
        assert isinstance(example, TuningExample)
        prompt = tokenizer.encode(example.messages[0]["content"])
        reply = [*tokenizer.encode(example.reply, add_special_tokens=False), 256]
        ids = torch.tensor([[*prompt, *reply]])
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
        total = total + F.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum")
        count += len(reply)
    (total / count).backward()
    assert found.losses == [pytest.approx((total / count).item(), abs=1e-5)]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found.gradients[0][name], parameter.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens", [60, 100, 10_000])
def test_the_gradient_does_not_depend_on_the_split(policy: Path, rows: Path, tokens: int) -> None:
    split = run(policy, rows, steps=1, tokens_per_micro_batch=tokens, logprob_chunk_tokens=7)
    whole = run(policy, rows, steps=1, tokens_per_micro_batch=100_000)
    for name, gradient in whole.gradients[0].items():
        torch.testing.assert_close(split.gradients[0][name], gradient, rtol=0, atol=1e-6)


def tune_rank(rank: int, world_size: int, policy: Path, rows: Path, out: Path) -> None:
    settings: dict[str, Any] = {}
    if world_size > 1:
        settings["strategy"] = FullyShardedStrategy(param_dtype="float32")
        settings["devices"] = world_size
        settings["plugins"] = [LightningEnvironment(), AtomicCheckpointIO()]
    # evaluations that end with a forward pass, before the optimizer is made and before checkpoints
    callbacks = [PolicyExport(out / "simulator"), PolicyCheckpoint(out / "checkpoints", 1)]
    found = run(policy, rows, *callbacks, steps=3, fidelity_examples=0, start=True, **settings)
    if rank == 0:
        torch.save(
            {"gradients": found.gradients, "val": found.validation_metrics, "losses": found.losses},
            out / "found",
        )


@pytest.mark.timeout(900)  # two processes that import everything, on a busy machine too
def test_two_sharded_ranks_tune_as_one_process(policy: Path, rows: Path, tmp_path: Path) -> None:
    found = []
    for world_size in (1, 2):
        out = tmp_path / str(world_size)
        out.mkdir()
        if world_size == 1:
            tune_rank(0, 1, policy, rows, out)
        else:
            run_ranks(world_size, tune_rank, policy, rows, out)
        found.append(torch.load(out / "found"))
        model = AutoModelForCausalLM.from_pretrained(out / "simulator")
        found[-1]["weights"] = model.state_dict()
    one, two = found
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["val"] == pytest.approx(one["val"], rel=2e-5)
    for own, expected in zip(two["gradients"], one["gradients"], strict=True):
        for name, gradient in expected.items():
            torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-5)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=0, atol=1e-4)


def test_tuning_lowers_the_loss_of_held_out_rows(policy: Path, rows: Path) -> None:
    found = run(policy, rows, steps=60, examples_per_step=12, lr=0.005)
    assert found.losses[0] > 5.0
    assert found.validation_metrics["val/loss"] < 1.5
    assert found.validation_metrics["val/perplexity"] < 5.0
    assert {
        "val/loss_useful",
        "val/loss_noisy",
        "val/incomplete",
    } <= found.validation_metrics.keys()
    assert found.validation_metrics["val/loss_noisy"] < found.validation_metrics["val/loss_useful"]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_export_is_served_with_the_prompt_of_training(
    policy: Path, rows: Path, tmp_path: Path, lora: bool
) -> None:
    config = LoraConfig(r=4, target_modules="all-linear") if lora else None
    folder = tmp_path / "simulator"
    found = run(policy, rows, PolicyExport(folder), lora=config)
    request = SearchRequest(query="q1", question="Q1", golden_answers=("A1",), top_k=1)
    messages = SimulatorPrompt(str(folder), 30).messages(request, noisy=False)
    data = make_data(rows)
    every = data.examples.train + data.examples.validation
    example = next(each for each in every if each.group == "Q1" and not each.noisy)
    assert messages == list(example.messages)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == found.encode([example])[0].prompt_ids
    exported = AutoModelForCausalLM.from_pretrained(folder)
    assert found.model is not None
    tokens = torch.tensor([ids])
    torch.testing.assert_close(
        exported(tokens).logits, found.model.eval()(tokens).logits, rtol=0, atol=1e-4
    )
    settings = json.loads((folder / "zerosearch.json").read_text())
    assert settings == {"simulator": {"max_reply_tokens": 12}}


def test_a_stopped_run_goes_on_bit_for_bit(policy: Path, rows: Path, tmp_path: Path) -> None:
    assert_goes_on_bit_for_bit(partial(run, policy, rows), tmp_path)


def test_a_rate_that_is_given_wins_over_that_of_the_checkpoint(
    policy: Path, rows: Path, tmp_path: Path
) -> None:
    run(policy, rows, PolicyCheckpoint(tmp_path, 2, keep=None), steps=4)
    resume = tmp_path / "step_000002.ckpt"
    rates = [
        run(policy, rows, steps=4, resume=resume, lr=lr).train_metrics["optimizer/learning_rate"]
        for lr in (0.01, 0.005)
    ]
    assert rates[1] == pytest.approx(rates[0] / 2)


def test_a_gradient_that_is_no_number_is_skipped_and_counted_in_a_resumed_run_too(
    policy: Path, rows: Path, tmp_path: Path
) -> None:
    saving, poisoned = PolicyCheckpoint(tmp_path, 1, keep=None), frozenset({1, 2})
    alone = run(policy, rows, saving, steps=4, poisoned=poisoned)
    assert [loss is None for loss in alone.losses] == [False, True, True, False]
    assert len(alone.gradients) == 2 and alone.train_metrics["optimizer/skipped"] == 2.0
    assert alone.held == 0, "and none is kept, made or skipped"
    resume = tmp_path / "step_000002.ckpt"
    again = run(policy, rows, steps=4, poisoned=poisoned, resume=resume)
    assert again.losses == alone.losses[2:]
    assert again.train_metrics["optimizer/skipped"] == 2.0
    with pytest.raises(FloatingPointError, match=r"in 2 updates in a row.*optimizer\.lr or"):
        run(policy, rows, steps=4, poisoned=poisoned, resume=resume, max_skipped_updates=2)


def test_a_checkpoint_with_another_prompt_is_refused(
    policy: Path, rows: Path, tmp_path: Path
) -> None:
    run(policy, rows, PolicyCheckpoint(tmp_path / "checkpoints", 1), steps=1)
    data = make_data(rows)
    module = make_module(PolicySource(path=str(policy)), data, steps=2)
    module.template = "another"
    with pytest.raises(ValueError, match="another template than those of the checkpoint's run"):
        tune(module, data, resume=tmp_path / "checkpoints" / "last.ckpt")


def test_what_is_written_can_be_read(policy: Path, rows: Path, tmp_path: Path) -> None:
    found = run(policy, rows, WrittenDocuments(tmp_path / "documents"), steps=2)
    lines = (tmp_path / "documents" / "val" / "step_000002.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert len(written) == 4 == len(found.written)
    assert all(each["prompt"].startswith(("noisy 1", "useful 1")) for each in written)
    assert all(each["recorded"].startswith("Doc 1: ") for each in written)
    assert {each["noisy"] for each in written} <= {True, False}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps=0: give 1"),
        ({"fidelity_examples": -1}, "fidelity_examples=-1: give 0"),
        ({"max_reply_tokens": 0}, "max_reply_tokens=0: give 1"),
        ({"max_skipped_updates": 0}, "max_skipped_updates=0: give 1"),
    ],
)
def test_settings_out_of_range(
    policy: Path, rows: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"module\.{message}"):
        make_module(PolicySource(path=str(policy)), make_data(rows), **fields)
