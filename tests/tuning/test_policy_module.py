"""The cold start of a policy: what is learned, its export, RL from there, its resumption."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from peft import LoraConfig
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tests.helpers.demonstrations import (
    EPISODE,
    make_data,
    make_module,
    make_record,
    write_episodes,
)
from tests.helpers.engines import ScriptedEngine
from tests.helpers.models import save_policy_folder
from tests.helpers.policy_stub import make_trainer
from tests.helpers.ranks import run_ranks
from tests.helpers.training import fit, make_questions, make_training
from tests.helpers.tuning import Watching, assert_goes_on_bit_for_bit, tune
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.callbacks.export import PolicyExport
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.core.plain import from_plain
from zerosearch.core.run_date import set_run_date
from zerosearch.policy.conversion import convert
from zerosearch.policy.source import PolicySource
from zerosearch.rollout.saved_episode import saved_episode
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.training.evaluation import Evaluation
from zerosearch.training.sharded_strategy import FullyShardedStrategy
from zerosearch.tuning.policy_module import PolicyTuningModule


@pytest.fixture
def file(tmp_path: Path) -> Path:
    records = [make_record(number, searches=number % 3) for number in range(30)]
    return write_episodes(tmp_path / "episodes.jsonl", records)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return save_policy_folder(tmp_path / "start", bos=True)


class Watched(Watching, PolicyTuningModule):
    """Keeps the gradient and loss of every update."""


def run(policy: Path, file: Path, *callbacks: Callback, **fields: Any) -> Watched:
    given = ("resume", "start", "strategy", "plugins", "devices", "precision")
    trainer = {name: fields.pop(name) for name in given if name in fields}
    data = make_data(file, fields.pop("examples_per_step", 6))
    source = PolicySource(path=str(policy), lora=fields.pop("lora", None))
    module = make_module(source, module=Watched, gradient_clip=1e9, **fields)
    assert isinstance(module, Watched)
    module.take(data.examples)
    tune(module, data, *callbacks, **trainer)
    return module


def drawn(file: Path, module: PolicyTuningModule, count: int) -> Sequence[Any]:
    """The examples of the first step."""
    data = make_data(file, count)
    data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    data.trainer.strategy.connect(module)
    module.policy_step = 0
    return next(iter(data.train_dataloader())).examples


def test_the_loss_is_the_cross_entropy_of_what_the_policy_would_sample(
    policy: Path, file: Path
) -> None:
    found = run(policy, file, steps=1, examples_per_step=5)
    model = AutoModelForCausalLM.from_pretrained(policy)
    total, count = torch.zeros(()), 0
    for each in found.encode(drawn(file, found, 5)):
        ids, learned = torch.tensor([each.ids]), torch.tensor(each.learned)
        logits = model(ids).logits[0, :-1]
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        total = total + losses[learned[1:]].sum()
        count += sum(each.learned)
    (total / count).backward()
    assert found.losses == [pytest.approx((total / count).item(), abs=1e-5)]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found.gradients[0][name], parameter.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens", [150, 10_000])
def test_the_gradient_does_not_depend_on_the_split(policy: Path, file: Path, tokens: int) -> None:
    split = run(policy, file, steps=1, tokens_per_micro_batch=tokens, logprob_chunk_tokens=7)
    whole = run(policy, file, steps=1, tokens_per_micro_batch=100_000)
    for name, gradient in whole.gradients[0].items():
        torch.testing.assert_close(split.gradients[0][name], gradient, rtol=0, atol=1e-6)


def test_what_is_foretold_is_counted(policy: Path, file: Path) -> None:
    found = run(policy, file, steps=2, lr=0.0)
    held_out = found.encode(make_data(file).validation)
    assert found.model is not None
    hits = tokens = 0
    for each in held_out:
        ids, learned = torch.tensor([each.ids]), torch.tensor(each.learned)[1:]
        hits += int((found.model(ids).logits[0, :-1].argmax(-1) == ids[0, 1:])[learned].sum())
        tokens += sum(each.learned)
    assert found.validation_metrics["val/token_accuracy"] == pytest.approx(hits / tokens)


@pytest.mark.slow
def test_a_policy_learns_to_play_and_its_held_out_answers_show_it(
    policy: Path, tmp_path: Path
) -> None:
    records = [make_record(number) for number in range(30)]
    file = write_episodes(tmp_path / "one_search.jsonl", records)
    evaluations = {"same": Evaluation(search=ScriptedEngine(["it is red."]))}
    fields = {"steps": 150, "examples_per_step": 12, "lr": 0.005, "evaluated_questions": 3}
    found = run(policy, file, evaluations=evaluations, start=True, **fields)
    start, end = found.start_metrics, found.validation_metrics
    assert start["start/loss"] > 5.0 > 0.5 > end["val/loss"]
    assert end["val/token_accuracy"] > 0.8 > 0.1 > start["start/token_accuracy"]
    assert start["start/same/f1"] == 0.0 < 0.5 < end["val/same/f1"]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_rl_goes_on_from_the_export_which_is_its_reference(
    policy: Path, file: Path, tmp_path: Path, lora: bool
) -> None:
    config = LoraConfig(r=4, target_modules="all-linear") if lora else None
    folder = tmp_path / "policy"
    found = run(policy, file, PolicyExport(folder, "float32"), lora=config)
    assert found.model is not None
    settings = json.loads((folder / "zerosearch.json").read_text())
    assert settings == {"episode": EPISODE.as_dict(), "chat": False, "dtype": "float32"}
    assert dataclasses.replace(saved_episode(str(folder)), prompt_template="plain") == (
        from_plain(EpisodeSettings, EPISODE.as_dict(), "")
    )
    exported = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(40)[None]
    torch.testing.assert_close(
        exported(ids).logits, found.model.eval()(ids).logits, rtol=0, atol=1e-4
    )
    rl = make_training(
        policy=PolicySource(path=str(folder)),
        episode=dataclasses.replace(EPISODE, max_turn_tokens=8),
        algorithm=Algorithm(group_size=2, kl_coefficient=0.1),
    )
    [step] = fit(rl, make_questions(1))
    assert rl.reference is not None and rl.reference.model is not None
    assert step.metrics["loss/kl"] == pytest.approx(0.0, abs=1e-6)
    for name, weight in exported.state_dict().items():
        assert torch.equal(rl.reference.model.state_dict()[name], weight), name


def test_bfloat16_keeps_master_weights_and_every_trained_bit(
    policy: Path, file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "policy"
    found = run(policy, file, PolicyExport(folder, "float32"), precision="bf16-mixed", steps=2)
    exact = run(policy, file, steps=2)
    assert found.losses == pytest.approx(exact.losses, rel=0.02) and found.losses != exact.losses
    assert found.model is not None
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    for name, weight in found.model.state_dict().items():
        assert torch.equal(exported.state_dict()[name], weight), name
    assert json.loads((folder / "zerosearch.json").read_text())["dtype"] == "bfloat16"


def test_a_stopped_run_goes_on_bit_for_bit(policy: Path, file: Path, tmp_path: Path) -> None:
    assert_goes_on_bit_for_bit(partial(run, policy, file), tmp_path)


def test_a_checkpoint_of_other_episodes_or_of_another_kind_is_refused(
    policy: Path, file: Path, tmp_path: Path
) -> None:
    run(policy, file, PolicyCheckpoint(tmp_path / "checkpoints", 1), steps=1)
    last, data = tmp_path / "checkpoints" / "last.ckpt", make_data(file)
    other = dataclasses.replace(EPISODE, top_k=2)
    module = make_module(PolicySource(path=str(policy)), steps=2, episode=other)
    with pytest.raises(ValueError, match="top_k is 2 but the policy was trained with 1"):
        tune(module, data, resume=last)
    (policy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    module = make_module(PolicySource(path=str(policy), chat=True), steps=2)
    with pytest.raises(ValueError, match=r"model\.chat is True and the run began with False"):
        tune(module, data, resume=last)
    rl = make_training(policy=PolicySource(path=str(policy)), episode=EPISODE, policy_steps=2)
    with pytest.raises(ValueError, match="not written by this project's training by RL"):
        make_trainer(2, callbacks=[], val_every=None).fit(rl, data, ckpt_path=last)


def test_a_policy_can_be_had_from_a_checkpoint(policy: Path, file: Path, tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(f"model: {{path: '{policy}'}}\n")
    found = run(policy, file, PolicyCheckpoint(tmp_path / "checkpoints", 1), steps=1)
    folder = convert(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "out")
    assert saved_episode(str(folder)).max_turns == EPISODE.max_turns
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert found.model is not None
    for name, weight in found.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_all_ranks_train_on_prompts_of_the_date_that_they_agreed_on(
    policy: Path, file: Path
) -> None:
    template = '{{ strftime_now("%d %b") }} {{ messages[0].content }}'
    (policy / "chat_template.jinja").write_text(template)
    module, data = make_module(PolicySource(path=str(policy), chat=True), steps=1), make_data(file)
    set_run_date("2026-02-03T23:59:59")
    module.take(data.examples)
    set_run_date("2026-02-04T00:00:00")
    tune(module, data)
    assert module.tokenizer is not None
    for each in module.encode(data.validation):
        assert str(module.tokenizer.decode(each.ids)).startswith("04 Feb Question")


def tune_rank(rank: int, world_size: int, policy: Path, file: Path, out: Path) -> None:
    settings: dict[str, Any] = {}
    if world_size > 1:
        settings["strategy"] = FullyShardedStrategy(param_dtype="float32")
        settings["devices"] = world_size
        settings["plugins"] = [LightningEnvironment(), AtomicCheckpointIO()]
    callbacks = [PolicyExport(out / "policy"), PolicyCheckpoint(out / "checkpoints", 1)]
    found = run(policy, file, *callbacks, steps=3, start=True, **settings)
    if rank == 0:
        torch.save({"val": found.validation_metrics, "losses": found.losses}, out / "found")


@pytest.mark.slow
@pytest.mark.timeout(900)  # two processes that import everything, on a busy machine too
def test_two_sharded_ranks_tune_as_one_process(policy: Path, file: Path, tmp_path: Path) -> None:
    found = []
    for world_size in (1, 2):
        out = tmp_path / str(world_size)
        out.mkdir()
        if world_size == 1:
            tune_rank(0, 1, policy, file, out)
        else:
            run_ranks(world_size, tune_rank, policy, file, out)
        found.append(torch.load(out / "found"))
        model = AutoModelForCausalLM.from_pretrained(out / "policy")
        found[-1]["weights"] = model.state_dict()
    one, two = found
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["val"] == pytest.approx(one["val"], rel=2e-5)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=0, atol=1e-4)


def test_a_policy_that_had_other_episodes_before_is_warned_about(
    policy: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = dataclasses.replace(EPISODE, top_k=2).as_dict()
    (policy / "zerosearch.json").write_text(json.dumps({"episode": other, "chat": False}))
    make_module(PolicySource(path=str(policy))).take(make_data(file).examples)
    assert "top_k is 1 but the policy was trained with 2" in caplog.text


def test_an_episode_that_no_rollout_gives_is_refused_with_its_place(
    policy: Path, tmp_path: Path
) -> None:
    records = [make_record(number, searches=3) for number in range(20)]
    file = write_episodes(tmp_path / "long.jsonl", records)
    tight = dataclasses.replace(EPISODE, max_context_tokens=256)
    with pytest.raises(
        ValueError,
        match=r"20 of 20 episodes are not .*long\.jsonl.*: it ends after turn 3 of 4, by episode\."
        r"max_context_tokens=256",
    ):
        run(policy, file, episode=tight)


def test_episodes_without_any_held_out_are_refused(policy: Path, tmp_path: Path) -> None:
    file = write_episodes(tmp_path / "one.jsonl", [make_record()])
    with pytest.raises(ValueError, match=r"raise data\.files\.validation_share"):
        run(policy, file)
