"""Sampling one batch ahead: which weights sample what, and what stays exact."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from tests.helpers.engines import ScriptedEngine
from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import Records, fit, make_data, make_questions, make_training, weights
from tests.helpers.words import make_word_model
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.importance import ImportanceCorrection
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.data.loaders import QuestionBatch
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.training.evaluation import Evaluation
from zerosearch.training.failures import SearchOutage
from zerosearch.training.module import SearchPolicyModule
from zerosearch.training.step_record import StepRecord
from zerosearch.types import SearchError, SearchRequest

STEPS = 4
WAIT_S = 60  # a guard against hanging


def make_lagging(**fields: Any) -> SearchPolicyModule:
    return make_training(
        **{
            "generator": TransformersGenerator(copy_weights=True),
            "lag": 1,
            "policy_steps": STEPS,
            "optimizer": partial(torch.optim.SGD, lr=0.5),
            "algorithm": Algorithm(group_size=4, kl_coefficient=0.0),
            **fields,
        }
    )


def sampled_ids(records: list[StepRecord]) -> list[list[list[int]]]:
    return [[t.response_ids for t in record.trajectories] for record in records]


def background_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "background"]


# -- which weights sample what --------------------------------------------------------------------


def test_each_batch_comes_from_the_weights_before_the_last_update() -> None:
    questions = make_questions(6)
    frozen = fit(make_lagging(optimizer=partial(torch.optim.SGD, lr=0.0)), questions)
    exact = fit(make_lagging(lag=0), questions)
    lagging = fit(make_lagging(), questions)
    ids = {"frozen": sampled_ids(frozen), "exact": sampled_ids(exact), "lag": sampled_ids(lagging)}
    assert ids["lag"][0] == ids["frozen"][0] == ids["exact"][0]
    # step 1 trains on what the untrained policy sampled, step 2 on what one update made of it
    assert ids["lag"][1] == ids["frozen"][1] != ids["exact"][1]
    assert ids["lag"][2] != ids["frozen"][2]
    assert [record.metrics["rollout/lag"] for record in lagging] == [0, 1, 1, 1]
    assert [record.metrics["rollout/lag"] for record in exact] == [0] * STEPS
    gaps = [record.metrics["rollout/logprob_gap"] for record in lagging]
    assert gaps[0] < 1e-5 and min(gaps[1:]) > 1e-3, "the gap is that of two policies"
    assert max(record.metrics["rollout/logprob_gap"] for record in exact) < 1e-5


def test_lag_0_is_what_it_was_with_the_weights_that_are_shared() -> None:
    questions = make_questions(4)
    copied, shared = make_lagging(lag=0), make_lagging(lag=0, generator=TransformersGenerator())
    assert sampled_ids(fit(copied, questions)) == sampled_ids(fit(shared, questions))
    for name, tensor in weights(copied).items():
        torch.testing.assert_close(tensor, weights(shared)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("lag", [0, 1])
def test_sampling_and_training_compute_in_the_same_precision(lag: int) -> None:
    frozen = make_lagging(lag=lag, optimizer=partial(torch.optim.SGD, lr=0.0))
    records = fit(frozen, make_questions(4), precision="bf16-mixed")
    # bfloat16 against float32, or log-probs rounded to bfloat16, differ by 1e-3 and more
    assert max(record.metrics["rollout/logprob_gap"] for record in records) < 1e-5


def test_a_batch_keeps_its_own_noise_and_questions() -> None:
    class Noise(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            pl_module.noise_probability = 0.1 * pl_module.policy_step
            pl_module.next_noise_probability = 0.1 * (pl_module.policy_step + 1)

    def run(lag: int) -> tuple[list[StepRecord], dict[float, set[str]]]:
        engine = ScriptedEngine(["red"])
        module = make_lagging(lag=lag, search=engine, optimizer=partial(torch.optim.SGD, lr=0.0))
        records = Records()
        trainer = make_trainer(STEPS, callbacks=[Noise(), records], val_every=None)
        data = make_data(make_questions(8), questions_per_step=2)
        trainer.fit(module, data)
        asked: dict[float, set[str]] = {}
        for request in engine.requests:
            asked.setdefault(request.noise_probability, set()).add(request.question)
        return records.steps, asked

    (lagging, asked), (exact, asked_exact) = run(1), run(0)
    for one, other in zip(lagging, exact, strict=True):
        assert [t.question.uid for t in one.trajectories] == [
            t.question.uid for t in other.trajectories
        ]
        assert one.noise_probability == other.noise_probability == pytest.approx(0.1 * one.step)
        assert one.metrics["curriculum/noise_probability"] == one.noise_probability
    assert asked == asked_exact


def test_the_number_of_steps_and_of_sampled_batches_stays() -> None:
    engine = ScriptedEngine(["red"])
    module = make_lagging(model=make_word_model(ask=1.0), search=engine)
    records = fit(module, make_questions(3))
    assert [record.step for record in records] == [0, 1, 2, 3] and module.policy_step == STEPS
    searches = sum(len(t.searches) for record in records for t in record.trajectories)
    assert len(engine.requests) == searches, "nothing is sampled that no step trains on"
    assert not background_threads()


def test_the_correction_weighs_what_older_weights_sampled() -> None:
    algorithm = Algorithm(
        group_size=4,
        kl_coefficient=0.0,
        importance_correction=ImportanceCorrection(kind="mask", low=0.9, high=1.1),
    )
    records = fit(make_lagging(algorithm=algorithm), make_questions(6))
    first, *others = [record.metrics for record in records]
    assert first["ratio/importance"] == pytest.approx(1.0, abs=1e-4)
    assert first["ratio/importance_cut"] == 0.0
    assert all(0.0 < metrics["ratio/importance_cut"] < 1.0 for metrics in others)
    assert all(metrics["ratio/importance"] < 0.99 for metrics in others), "masked weigh nothing"


# -- at the same time -----------------------------------------------------------------------------


def test_sampling_goes_on_while_training_computes_and_not_while_it_evaluates() -> None:
    asked = threading.Event()
    trained = threading.Event()
    overlaps: list[bool] = []
    at_rest: list[bool] = []

    def search(request: SearchRequest) -> list[str]:
        if threading.current_thread().name == "background":
            asked.set()
            trained.wait(WAIT_S)  # sampling cannot end before training computes
        return ["red"]

    def evaluate(request: SearchRequest) -> list[str]:
        at_rest.append(not background_threads())
        return ["red"]

    class Overlapping(SearchPolicyModule):
        def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            if self.policy_step + 1 < self.policy_steps:
                overlaps.append(asked.wait(WAIT_S))
            super().manual_backward(loss, *args, **kwargs)
            trained.set()

    module = make_lagging(
        model=make_word_model(ask=1.0),
        module=Overlapping,
        search=ScriptedEngine(search),
        evaluations={"same": Evaluation(search=ScriptedEngine(evaluate))},
    )
    trainer = make_trainer(STEPS, callbacks=[], val_every=1)
    trainer.fit(module, make_data(make_questions(3), make_questions(1)))
    assert overlaps and all(overlaps)
    assert len(at_rest) == STEPS and all(at_rest)


def test_an_error_while_sampling_ahead_costs_no_step_before_the_one_that_needs_it(
    tmp_path: Path,
) -> None:
    def search(request: SearchRequest) -> list[str]:
        if threading.current_thread().name == "background":
            raise RuntimeError("a defect in the engine")
        return ["red"]

    module = make_lagging(model=make_word_model(ask=1.0), search=ScriptedEngine(search))
    saving = PolicyCheckpoint(tmp_path, every_n_steps=1)
    trainer = make_trainer(STEPS, callbacks=[saving], val_every=None)
    with pytest.raises(RuntimeError, match="a defect in the engine"):
        trainer.fit(module, make_data(make_questions(2)))
    assert module.policy_step == 1, "the step that sampled for itself was made"
    assert (tmp_path / "step_000001.ckpt").is_file(), "and saved"
    assert not background_threads()


def test_an_error_in_training_calls_the_sampling_off() -> None:
    class Broken(SearchPolicyModule):
        def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            raise FloatingPointError("not finite")

    class Waiting(ScriptedEngine):
        async def search(self, request: SearchRequest) -> Any:
            if threading.current_thread().name == "background":
                await never.wait()
            return await super().search(request)

    never = asyncio.Event()
    module = make_lagging(model=make_word_model(ask=1.0), module=Broken, search=Waiting(["red"]))
    with pytest.raises(FloatingPointError):
        fit(module, make_questions(2))
    assert not background_threads()


# -- checkpoints ----------------------------------------------------------------------------------


def train_saving(
    folder: Path, checkpoint: Path | None = None, **fields: Any
) -> tuple[SearchPolicyModule, list[StepRecord]]:
    """Train with a checkpoint after every step and a validation after every second one."""
    module = make_lagging(
        **{
            "optimizer": partial(torch.optim.Adam, lr=0.05),
            "algorithm": Algorithm(group_size=4, mini_batches=2, kl_coefficient=0.01),
            **fields,
        }
    )
    records, saving = Records(), PolicyCheckpoint(folder, every_n_steps=1, keep=None)
    trainer = make_trainer(STEPS, callbacks=[records, saving], val_every=2)
    data = make_data(make_questions(6), make_questions(1), questions_per_step=3)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, records.steps


@pytest.mark.parametrize("step", [1, 2, 3])
def test_invariant_13_a_resumed_run_trains_on_what_was_sampled_ahead(
    step: int, tmp_path: Path
) -> None:
    whole, every = train_saving(tmp_path)
    resumed, late = train_saving(tmp_path / "b", tmp_path / f"step_00000{step}.ckpt")
    assert [record.step for record in late] == list(range(step, STEPS))
    assert sampled_ids(late) == sampled_ids(every[step:])
    for one, other in zip(late, every[step:], strict=True):
        for name in ("rollout/lag", "rollout/logprob_gap", "loss/policy", "loss/kl", "reward/f1"):
            assert one.metrics[name] == other.metrics[name], name
        assert one.metrics["rollout/lag"] == 1
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, weights(whole)[name]), name


def test_invariant_13_a_resumed_run_knows_what_was_dropped_ahead(tmp_path: Path) -> None:
    algorithm = Algorithm(group_size=2, kl_coefficient=0.0, resampling_rounds=2)
    whole, every = train_saving(tmp_path, algorithm=algorithm)
    resumed, late = train_saving(tmp_path / "b", tmp_path / "step_000001.ckpt", algorithm=algorithm)
    assert sampled_ids(late) == sampled_ids(every[1:])
    assert any(record.metrics["sampling/dropped_groups"] > 0 for record in late)
    for one, other in zip(late, every[1:], strict=True):
        names = [n for n in one.metrics if n.startswith(("sampling/", "reward/", "cost/"))]
        assert {n: one.metrics[n] for n in names} == {n: other.metrics[n] for n in names}
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, weights(whole)[name]), name


def test_a_run_resumed_without_a_lag_starts_with_its_present_weights(tmp_path: Path) -> None:
    train_saving(tmp_path)
    _, late = train_saving(tmp_path / "b", tmp_path / "step_000002.ckpt", lag=0)
    assert [record.metrics["rollout/lag"] for record in late] == [0, 0]


@pytest.mark.parametrize("every_n_steps", [9, 1], ids=["saved by the error", "saved before it"])
def test_invariant_04_a_lost_engine_ends_the_run_and_its_batch_is_sampled_anew(
    every_n_steps: int, tmp_path: Path
) -> None:
    lost = threading.Event()

    def search(request: SearchRequest) -> list[str]:
        if lost.is_set():
            raise SearchError("http://search.test/retrieve", "connection refused")
        return ["red"]

    class Losing(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if pl_module.policy_step == 2:
                pl_module.rollouts.drain()
                lost.set()

    searching = partial(make_word_model, ask=1.0)
    module = make_lagging(model=searching(), search=ScriptedEngine(search))
    saving = PolicyCheckpoint(tmp_path, every_n_steps)
    with pytest.raises(SearchOutage, match="connection refused"):
        make_trainer(STEPS, callbacks=[Losing(), saving], val_every=None).fit(
            module, make_data(make_questions(3))
        )
    assert (tmp_path / "step_000003.ckpt").is_file()
    again, records = make_lagging(model=searching()), Records()
    make_trainer(STEPS, callbacks=[records], val_every=None).fit(
        again,
        make_data(make_questions(3)),
        ckpt_path=tmp_path / "last.ckpt",
        weights_only=True,
    )
    assert [(r.step, r.metrics["rollout/lag"]) for r in records.steps] == [(3, 0)]


# -- settings that cannot work --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lag": 2}, r"rollout\.lag=2: give 0 \(exact\) or 1"),
        ({"lag": -1}, r"rollout\.lag=-1"),
        (
            {"generator": TransformersGenerator()},
            r"rollout\.lag=1: TransformersGenerator samples from the very weights.*lag=0",
        ),
    ],
)
def test_settings_that_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_lagging(**fields)


def test_data_that_does_not_look_ahead_is_an_error_that_says_so() -> None:
    module = make_lagging()
    trainer = make_trainer(STEPS, callbacks=[], val_every=None)
    questions: Any = [QuestionBatch(make_questions(2))] * STEPS
    with pytest.raises(ValueError, match=r"rollout\.lag=1 .*QuestionBatch\.following"):
        trainer.fit(module, DataLoader(questions, batch_size=None))
