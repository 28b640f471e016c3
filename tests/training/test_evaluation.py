"""Held-out questions: all of them, greedily, with engines and noise of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.helpers.engines import ScriptedEngine
from tests.helpers.generators import ScriptedGenerator
from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import Records, make_data, make_questions, make_training, weights
from tests.helpers.words import COLOURS, make_word_model, make_word_tokenizer
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.generation.generator import Sampling
from zerosearch.training.evaluation import Evaluation
from zerosearch.training.failures import SearchOutage
from zerosearch.training.module import SearchPolicyModule
from zerosearch.training.step_record import StepRecord
from zerosearch.types import Question


def scripted(script: Any) -> ScriptedGenerator:
    return ScriptedGenerator(make_word_tokenizer(), script)


def evaluate(
    module: SearchPolicyModule, questions: Sequence[Question], *, batch: int = 2, phase: str = "val"
) -> dict[str, float]:
    """Metrics of one pass over the questions, `batch` at a time."""
    module.phase = phase
    trainer = make_trainer(1, callbacks=[], val_every=None)
    data = make_data(make_questions(1), questions, validation_batch=batch)
    trainer.test(module, data, verbose=False)
    return module.evaluation_metrics


def mixed_questions() -> list[Question]:
    """Five questions about red, one of which the policy below gets right in two cases of three."""
    hops = (1, 2, 1, 2, 2)
    golden = ("red", "red", "blue", "gold", "red")
    return [
        Question(uid=f"t:{n}", text=f"colour {n}", golden_answers=(answer,), metadata={"hops": hop})
        for n, (hop, answer) in enumerate(zip(hops, golden, strict=True))
    ]


ALWAYS_RED = "<answer> red </answer>"


def test_invariant_15_defect_05_every_question_counts_in_uneven_batches() -> None:
    module = make_training(generator=scripted(lambda _: ALWAYS_RED))
    metrics = evaluate(module, mixed_questions(), batch=2)
    assert metrics["val/same/count"] == 5
    assert metrics["val/same/f1"] == metrics["val/same/em"] == pytest.approx(3 / 5)
    [record] = module.evaluation_records
    assert [t.question.uid for t in record.trajectories] == [f"t:{n}" for n in range(5)]
    for batch in (1, 3, 5, 64):
        other = evaluate(module, mixed_questions(), batch=batch)
        assert other["val/same/f1"] == metrics["val/same/f1"]
        assert other["val/same/f1_low"] == metrics["val/same/f1_low"]


def test_invariant_15_confidence_intervals_lie_around_the_mean() -> None:
    metrics = evaluate(make_training(generator=scripted(lambda _: ALWAYS_RED)), mixed_questions())
    for name in ("f1", "em", "cover_em"):
        low, mean, high = (metrics[f"val/same/{name}{end}"] for end in ("_low", "", "_high"))
        assert 0 <= low < mean < high <= 1


def test_invariant_15_defect_05_it_is_greedy_unless_told_otherwise() -> None:
    engine = ScriptedEngine(["red"])
    generator = scripted(lambda _: ALWAYS_RED)
    evaluations = {
        "greedy": Evaluation(search=engine),
        "sampled": Evaluation(search=engine, sampling=Sampling(temperature=0.7, top_k=5)),
    }
    evaluate(make_training(generator=generator, evaluations=evaluations), mixed_questions())
    drawn = [(r.sampling.temperature, r.sampling.top_k) for r in generator.requests]
    assert sorted(set(drawn)) == [(0.0, 0), (0.7, 5)] and len(drawn) == 10


def test_invariant_15_the_same_policy_gives_the_same_answers() -> None:
    def texts() -> list[list[str]]:
        module = make_training(make_word_model(7))
        evaluate(module, make_questions(5), batch=2)
        [record] = module.evaluation_records
        return [[turn.text for turn in t.turns] for t in record.trajectories]

    first = texts()
    assert first == texts()
    assert all(turns[0].split()[0] in ("<search>", "<answer>") for turns in first)


def test_parts_are_shown_apart() -> None:
    evaluations = {"same": Evaluation(search=ScriptedEngine(["red"]), breakdown="hops")}
    module = make_training(generator=scripted(lambda _: ALWAYS_RED), evaluations=evaluations)
    metrics = evaluate(module, mixed_questions())
    assert (metrics["val/same/hops_1/count"], metrics["val/same/hops_2/count"]) == (2, 3)
    assert metrics["val/same/hops_1/f1"] == pytest.approx(1 / 2)
    assert metrics["val/same/hops_2/f1"] == pytest.approx(2 / 3)
    assert metrics["val/same/f1"] == pytest.approx(3 / 5)
    plain = make_training(generator=scripted(lambda _: ALWAYS_RED))
    assert not [name for name in evaluate(plain, mixed_questions()) if "hops" in name]
    untold = [dataclasses.replace(each, metadata={}) for each in mixed_questions()]
    found = evaluate(module, untold)
    assert found["val/same/count"] == 5 and not [name for name in found if "hops" in name]


def test_invariant_15_a_failed_search_is_a_wrong_answer_and_is_counted() -> None:
    engine = ScriptedEngine(["red"], failing=("colour 0", "colour 1"))

    def script(prompt: str) -> str:
        return ALWAYS_RED if "Doc" in prompt else "<search> where </search>"

    metrics = evaluate(make_training(search=engine, generator=scripted(script)), mixed_questions())
    assert metrics["val/same/count"] == 5
    assert metrics["val/same/failed"] == pytest.approx(2 / 5)
    assert metrics["val/same/search/failed"] == pytest.approx(2 / 5)
    assert metrics["val/same/f1"] == pytest.approx(1 / 5), "only t:4 of the three that were right"
    assert metrics["val/same/answered"] == pytest.approx(3 / 5)
    assert metrics["val/same/rollout/searches"] == 1.0, "of the episodes that were whole"


def test_invariant_15_an_engine_that_is_lost_is_named_and_its_share_reported() -> None:
    engines = {
        "whole": ScriptedEngine(["red"]),
        "lost": ScriptedEngine(["red"], failing=("colour 0", "colour 1")),
    }
    evaluations = {name: Evaluation(search=engine) for name, engine in engines.items()}

    def evaluated(max_failed_share: float) -> SearchPolicyModule:
        module = make_training(
            make_word_model(ask=1.0), evaluations=evaluations, max_failed_share=max_failed_share
        )
        metrics = evaluate(module, mixed_questions(), phase="test")
        assert metrics["test/lost/failed"] == pytest.approx(2 / 5)
        assert metrics["test/whole/failed"] == 0 and metrics["test/lost/count"] == 5
        return module

    assert evaluated(0.4).evaluation_outage is None
    said = str(evaluated(0.39).evaluation_outage)
    assert said.startswith("2 of 5 trajectories of the evaluation engine 'lost' (40.0%)")
    assert "module.max_failed_share=0.39" in said and said.endswith("Fix that, then evaluate again")
    assert "http://search.test/retrieve: no answer after 3 attempts" in said


def test_invariant_04_an_engine_lost_in_a_validation_ends_training_with_a_checkpoint(
    tmp_path: Path,
) -> None:
    def train(
        folder: Path, engine: ScriptedEngine, checkpoint: Path | None = None
    ) -> tuple[SearchPolicyModule, Records, Present]:
        module = make_training(
            make_word_model(ask=1.0),
            policy_steps=4,
            evaluations={"own": Evaluation(search=engine)},
        )
        records, present = Records(), Present()
        saving = PolicyCheckpoint(folder, every_n_steps=3)
        trainer = make_trainer(4, callbacks=[records, present, saving], val_every=2)
        data = make_data(make_questions(4), make_questions(1, "gold"), questions_per_step=2)
        try:
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        finally:
            seen.append(present)
        return module, records, present

    seen: list[Present] = []
    whole, _, _ = train(tmp_path / "whole", ScriptedEngine(["red"]))
    dead = ScriptedEngine(["red"], failing=("colour 0",))
    with pytest.raises(SearchOutage, match=r"engine 'own' \(100\.0%\).*resume=<run folder>"):
        train(tmp_path, dead)
    [record] = seen[-1].records
    assert (record.step, record.metrics["val/own/failed"]) == (2, 1.0), "kept before it ended"
    assert (tmp_path / "step_000002.ckpt").is_file(), "though only every third step is saved"

    resumed, records, present = train(tmp_path, ScriptedEngine(["red"]), tmp_path / "last.ckpt")
    assert [step.step for step in records.steps] == [2, 3]
    assert [record.step for record in present.records] == [4]
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, weights(whole)[name]), name


def test_every_engine_answers_with_its_own_noise() -> None:
    engines = {"clean": ScriptedEngine(["red"]), "noisy": ScriptedEngine(["blue"])}
    noise = {"clean": 0.0, "noisy": 0.25}
    evaluations = {
        name: Evaluation(search=engine, noise_probability=noise[name])
        for name, engine in engines.items()
    }

    def script(prompt: str) -> str:
        read = [colour for colour in COLOURS if colour in prompt.split()]
        return f"<answer> {read[0]} </answer>" if read else "<search> where </search>"

    module = make_training(generator=scripted(script), evaluations=evaluations)
    module.noise_probability = 0.9  # of training
    metrics = evaluate(module, make_questions(3))
    for name, engine in engines.items():
        assert {request.noise_probability for request in engine.requests} == {noise[name]}
        assert len(engine.requests) == 3
    assert (metrics["val/clean/f1"], metrics["val/noisy/f1"]) == (1.0, 0.0)
    assert [record.phase for record in module.evaluation_records] == ["val/clean", "val/noisy"]


def test_invariant_14_evaluation_asks_for_the_same_documents_every_time() -> None:
    engine = ScriptedEngine(["red"])
    module = make_training(make_word_model(ask=1.0), search=engine)
    evaluate(module, make_questions(3))
    module.policy_step = 7
    evaluate(module, make_questions(3))
    seeds = [request.seed for request in engine.requests]
    assert len(seeds) == 6 and seeds[:3] == seeds[3:] and len(set(seeds)) == 3


def test_each_phase_is_logged_under_its_name_and_the_start_is_kept() -> None:
    module = make_training(generator=scripted(lambda _: ALWAYS_RED))
    start = evaluate(module, make_questions(2), phase="start")
    assert start["start/same/f1"] == 1.0
    after = evaluate(module, make_questions(2, "blue"), phase="test")
    assert after["test/same/f1"] == 0.0
    assert module.start_metrics == start
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    resumed = make_training()
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.start_metrics == start


def test_rewards_of_evaluation_are_not_logged_twice() -> None:
    metrics = evaluate(make_training(generator=scripted(lambda _: ALWAYS_RED)), make_questions(2))
    assert not [name for name in metrics if "reward" in name]
    assert {"val/same/rollout/turns", "val/same/stop/answer"} <= metrics.keys()


class Present(Callback):
    """Notes what the policy answered at each validation."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.records += pl_module.evaluation_records


def train_with_validation(every: int | None) -> tuple[SearchPolicyModule, Records, Present]:
    module = make_training(policy_steps=4, optimizer=partial(torch.optim.SGD, lr=1.0))
    records, present = Records(), Present()
    trainer = make_trainer(4, callbacks=[records, present], val_every=every)
    trainer.fit(module, make_data(make_questions(4), make_questions(3, "gold")))
    return module, records, present


def test_validation_shows_the_present_policy_and_leaves_training_alone() -> None:
    alone, without, _ = train_with_validation(None)
    module, records, present = train_with_validation(2)
    assert [(record.step, record.phase) for record in present.records] == [
        (2, "val/same"),
        (4, "val/same"),
    ]
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, weights(alone)[name]), name
    for one, other in zip(records.steps, without.steps, strict=True):
        assert [t.response_ids for t in one.trajectories] == [
            t.response_ids for t in other.trajectories
        ]
        assert one.metrics["reward/f1"] == other.metrics["reward/f1"]


def test_the_weights_that_are_evaluated_are_the_trained_ones() -> None:
    module, _, _ = train_with_validation(None)
    assert module.model is not None
    before = evaluate(module, make_questions(3))["val/same/em"]
    red, gold = (make_word_tokenizer().encode(word)[0] for word in ("red", "gold"))
    with torch.no_grad():  # swap what the policy says
        head = module.model.get_parameter("lm_head.weight")
        head[red] -= 1.0
        head[gold] += 1.0
    assert evaluate(module, make_questions(3, "gold"))["val/same/em"] == 1.0
    assert evaluate(module, make_questions(3, "red"))["val/same/em"] == 0.0
    assert before in (0.0, 1.0)


def test_the_generator_gets_the_present_weights_before_each_batch() -> None:
    generator = scripted(lambda _: ALWAYS_RED)
    evaluate(make_training(generator=generator), mixed_questions(), batch=2)
    assert (generator.weight_version, generator.released) == (3, 3)


def test_nothing_to_evaluate_is_skipped() -> None:
    module = make_training(generator=scripted(lambda _: ALWAYS_RED))
    assert evaluate(module, []) == {}
