"""Whole policy steps of a tiny policy: what they train on, and what they do to it."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.helpers.engines import ScriptedEngine
from tests.helpers.generators import ScriptedGenerator
from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import (
    EPISODE,
    Records,
    Replay,
    fit,
    make_data,
    make_questions,
    make_training,
    make_turns_trajectory,
    weights,
)
from tests.helpers.words import VOCABULARY, make_word_model, make_word_tokenizer
from zerosearch import __version__
from zerosearch.algorithms.advantages import zero
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.kl import kl_estimate
from zerosearch.callbacks.metrics_csv import MetricsCsv
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.callbacks.transcripts import TranscriptWriter
from zerosearch.core.metrics_file import read_rows
from zerosearch.generation.generator import Completion, Sampling
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.export import load_settings
from zerosearch.policy.logprobs import token_logprobs
from zerosearch.reward.rubric import RewardTerm, Rubric
from zerosearch.training.failures import SearchOutage
from zerosearch.training.module import SearchPolicyModule
from zerosearch.training.step_record import StepRecord
from zerosearch.training.update import PolicyUpdater
from zerosearch.types import PolicyBatch, SearchError, SearchRequest, Trajectory

RED, BLUE = VOCABULARY.index("red"), VOCABULARY.index("blue")
ASK = [VOCABULARY.index(word) for word in ("<search>", "where", "</search>")]
READ = [VOCABULARY.index(word) for word in ("<information>", "Doc", "</information>")]


class SpyGenerator(TransformersGenerator):
    """Remembers every prompt with its completion."""

    def __init__(self) -> None:
        super().__init__()
        self.completions: list[tuple[tuple[int, ...], Completion]] = []

    async def generate(self, prompt_ids, request):
        completion = await super().generate(prompt_ids, request)
        self.completions.append((tuple(prompt_ids), completion))
        return completion


class Perturb(Callback):
    """Moves the policy away from its reference before the first step."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in pl_module.model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=noise)


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PolicyBatch, dict[str, float]]]:
    """The batch and the metric sums of every optimizer update, in order."""
    seen: list[tuple[PolicyBatch, dict[str, float]]] = []
    accumulate = PolicyUpdater.accumulate

    def spy(self: PolicyUpdater, model: nn.Module, batch: PolicyBatch, backward: Any):
        sums = accumulate(self, model, batch, backward)
        seen.append((batch, sums))
        return sums

    monkeypatch.setattr(PolicyUpdater, "accumulate", spy)
    return seen


def answer(token: int, **fields: Any) -> Trajectory:
    word = VOCABULARY[token]
    tokens = [VOCABULARY.index("<answer>"), token, VOCABULARY.index("</answer>")]
    return make_turns_trajectory([tokens], text=f"<answer> {word} </answer>", **fields)


def searched(token: int, **fields: Any) -> Trajectory:
    """An episode that asks, reads a document and answers."""
    final = answer(token)
    return make_turns_trajectory([ASK, final.response_ids], [READ], text=final.final_text, **fields)


def train_on(trajectories: list[Trajectory], **fields: Any) -> SearchPolicyModule:
    """One policy step on given trajectories."""
    module = make_training(generator=ScriptedGenerator(make_word_tokenizer(), []), **fields)
    module.rollouter = lambda: Replay(trajectories)  # type: ignore[method-assign, return-value]
    fit(module, make_questions(1))
    return module


def assert_unchanged(module: SearchPolicyModule, before: dict[str, Tensor]) -> None:
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, before[name]), name


# -- what is trained is what was sampled ----------------------------------------------------------


def test_invariant_01_the_batch_holds_the_sampled_ids_bit_for_bit(
    updates: list[tuple[PolicyBatch, dict[str, float]]],
) -> None:
    spy = SpyGenerator()
    # hardly decided words, so that turns of all kinds occur
    model = make_word_model(3)
    with torch.no_grad():
        model.lm_head.weight *= 0.3
    module = make_training(model, generator=spy)
    [record] = fit(module, make_questions(6))
    [(batch, _)] = updates
    turns = {prompt: [] for prompt, _ in spy.completions}
    for prompt, completion in spy.completions:
        turns[prompt].append(completion.token_ids)
    for row, trajectory in enumerate(record.trajectories):
        ids = batch.input_ids[row][batch.attention_mask[row]].tolist()
        assert ids == trajectory.prompt_ids + trajectory.response_ids
        at = len(trajectory.prompt_ids)
        for turn in trajectory.turns:
            sampled = ids[at : at + turn.sampled_tokens]
            assert sampled in turns[tuple(ids[:at])]
            assert batch.sampled_mask[row, at : at + len(sampled)].all()
            at += turn.sampled_tokens
            assert not batch.sampled_mask[row, at : at + turn.inserted_tokens].any()
            at += turn.inserted_tokens
        assert at == len(ids)
    trained = batch.input_ids[batch.sampled_mask]
    assert int(batch.sampled_mask.sum()) == sum(len(c.token_ids) for _, c in spy.completions)
    assert (trained == 0).any(), "EOS is among what is trained"
    reasons = {trajectory.stop_reason for trajectory in record.trajectories}
    assert {"answer", "eos", "turn_budget"} <= reasons
    assert any(trajectory.searches for trajectory in record.trajectories)


def test_invariant_08_log_probs_of_training_are_those_of_sampling() -> None:
    [record] = fit(make_training(make_word_model(5)), make_questions(8))
    assert record.metrics["rollout/logprob_gap"] < 1e-5
    assert record.metrics["ratio/mean"] == pytest.approx(1.0, abs=1e-5)
    assert record.metrics["ratio/clipped"] == 0.0


def test_invariant_08_another_temperature_holds_on_both_sides() -> None:
    module = make_training(make_word_model(5), sampling=Sampling(temperature=0.5))
    [record] = fit(module, make_questions(8))
    assert record.metrics["rollout/logprob_gap"] < 1e-5


def test_invariant_05_questions_of_one_wording_are_groups_of_their_own() -> None:
    questions = [*make_questions(2), *make_questions(3)[2:]]
    twins = [type(q)(uid=q.uid, text="same", golden_answers=("red",)) for q in questions]
    [record] = fit(make_training(), twins)
    members: dict[int, set[str]] = {}
    for trajectory in record.trajectories:
        members.setdefault(trajectory.group, set()).add(trajectory.question.uid)
    assert sorted(map(sorted, members.values())) == [["q:0"], ["q:1"], ["q:2"]]
    assert [t.sibling for t in record.trajectories] == [0, 1, 2, 3] * 3


def test_invariant_14_every_draw_of_a_run_has_a_seed_of_its_own() -> None:
    def seeds(seed: int) -> tuple[list[int], list[int]]:
        def ask_then_answer(prompt: str) -> str:
            return "<answer> red </answer>" if "Doc" in prompt else "<search> where </search>"

        engine = ScriptedEngine(["red"])
        generator = ScriptedGenerator(make_word_tokenizer(), ask_then_answer)
        fit(
            make_training(search=engine, generator=generator, policy_steps=2, seed=seed),
            make_questions(3),
        )
        sampled = [request.seed for request in generator.requests]
        return sampled, [request.seed for request in engine.requests]

    sampled, searched = seeds(0)
    # 2 steps x 3 questions x 4 siblings, two turns each and one search
    assert (len(sampled), len(searched)) == (48, 24)
    assert len({*sampled, *searched}) == 72
    assert seeds(0) == (sampled, searched)
    assert not {*sampled, *searched} & {*seeds(1)[0], *seeds(1)[1]}


def test_noise_of_the_curriculum_reaches_the_engine() -> None:
    engine = ScriptedEngine(["red"])

    class Noise(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            pl_module.noise_probability = 0.25 * (1 + pl_module.policy_step)

    records = fit(make_training(search=engine, policy_steps=2), make_questions(4), Noise())
    assert {request.noise_probability for request in engine.requests} == {0.25, 0.5}
    assert [r.metrics["curriculum/noise_probability"] for r in records] == [0.25, 0.5]
    assert [r.step for r in records] == [0, 1]


def test_noise_is_not_reported_of_a_real_engine() -> None:
    engine = ScriptedEngine(["red"], real=True)
    records = fit(make_training(search=engine, policy_steps=2), make_questions(4))
    assert all(record.metrics["rollout/searches"] > 0 for record in records)
    assert not any("curriculum/noise_probability" in record.metrics for record in records)


# -- the KL term ----------------------------------------------------------------------------------


def mean_kl(model: nn.Module, batch: PolicyBatch) -> float:
    assert batch.ref_logprobs is not None
    mask = batch.sampled_mask
    with torch.no_grad():
        stats = token_logprobs(model, batch.input_ids, batch.attention_mask, mask)
    return float(kl_estimate(stats.logprobs, batch.ref_logprobs, "k3")[mask].mean())


def test_invariant_07_defect_01_a_step_pulls_towards_the_reference(
    updates: list[tuple[PolicyBatch, dict[str, float]]],
) -> None:
    algorithm = Algorithm(group_size=4, advantage=zero, kl_coefficient=1.0)
    module = make_training(algorithm=algorithm, optimizer=partial(torch.optim.SGD, lr=0.05))
    [record] = fit(module, make_questions(4), Perturb())
    [(batch, sums)] = updates
    before = sums["kl_sum"] / sums["tokens"]
    assert record.metrics["loss/kl"] == pytest.approx(before)
    assert before > 0.01
    assert module.model is not None
    assert mean_kl(module.model, batch) < 0.98 * before


def test_invariant_07_the_reference_is_the_policy_before_training_and_stays() -> None:
    algorithm = Algorithm(group_size=4, kl_coefficient=0.5)
    start = {k: v.clone() for k, v in make_word_model().state_dict().items()}
    module = make_training(
        algorithm=algorithm, policy_steps=3, optimizer=partial(torch.optim.SGD, lr=1.0)
    )
    records = fit(module, make_questions(4))
    assert module.reference is not None and module.reference.model is not None
    assert all(torch.equal(v, start[k]) for k, v in module.reference.model.state_dict().items())
    assert any(not torch.equal(v, start[k]) for k, v in weights(module).items())
    kl = [record.metrics["loss/kl"] for record in records]
    assert kl[0] == pytest.approx(0.0, abs=1e-6) and kl[-1] > 1e-4


def test_without_a_kl_term_there_is_no_reference_to_hold() -> None:
    module = make_training(algorithm=Algorithm(group_size=4, kl_coefficient=0.0))
    [record] = fit(module, make_questions(1))
    assert module.reference is None and "loss/kl" not in record.metrics


# -- searches that fail ---------------------------------------------------------------------------

FAILED: dict[str, Any] = {
    "error": "search engine http://search.test: down",
    "stop_reason": "search_failed",
}


@pytest.mark.parametrize("advantage", ["grpo", "reinforce"])
def test_invariant_04_defect_13_failed_searches_leave_the_gradient_as_it_is(
    advantage: str,
) -> None:
    from zerosearch.algorithms import advantages

    function = {
        "grpo": advantages.grpo,
        "reinforce": partial(advantages.reinforce, baseline="batch"),
    }[advantage]
    fields: dict[str, Any] = {
        "algorithm": Algorithm(group_size=4, advantage=function, kl_coefficient=0.01),
        "optimizer": partial(torch.optim.SGD, lr=1.0),
        "max_failed_share": 0.9,
    }
    kept = [
        answer(RED, group=0, sibling=0),
        searched(BLUE, group=0, sibling=1),
        answer(RED, group=1, sibling=0),
        searched(RED, group=1, sibling=1),
        answer(BLUE, group=1, sibling=2),
    ]
    failed = [
        make_turns_trajectory([ASK], text="<search> where </search>", group=group, **FAILED)
        for group in (0, 1, 2)  # all siblings of group 2 failed
    ]
    start = {k: v.clone() for k, v in make_word_model().state_dict().items()}
    alone = train_on(kept, **fields)
    mixed = train_on([failed[0], *kept[:3], failed[1], *kept[3:], failed[2]], **fields)
    for name, tensor in weights(mixed).items():
        torch.testing.assert_close(tensor, weights(alone)[name], rtol=0, atol=1e-6)
    moved = [(weights(alone)[name] - start[name]).abs().max() for name in start]
    assert max(moved) > 1e-3
    one, other = alone.train_metrics, mixed.train_metrics
    assert (other["search/failed"], other["rollout/valid"]) == (3 / 8, 5 / 8)
    for name in ("reward/f1", "loss/policy", "loss/kl", "advantage/zero_groups", "rollout/tokens"):
        assert other[name] == pytest.approx(one[name], abs=1e-6), name


def test_invariant_04_too_many_failures_stop_the_run_and_name_the_endpoint() -> None:
    questions = make_questions(4)
    engine = ScriptedEngine(["red"], failing=tuple(q.text for q in questions[:2]))
    module = make_training(make_word_model(ask=1.0), search=engine, max_failed_share=0.4)
    before = {k: v.clone() for k, v in module.policy_source.load_model().state_dict().items()}
    with pytest.raises(RuntimeError, match=r"max_failed_share=0\.4.*http://search\.test/retrieve"):
        fit(module, questions)
    assert_unchanged(module, before)
    assert module.policy_step == 0


def test_invariant_04_a_share_that_is_allowed_goes_on() -> None:
    questions = make_questions(4)
    engine = ScriptedEngine(["red"], failing=(questions[0].text,))
    module = make_training(make_word_model(ask=1.0), search=engine, max_failed_share=0.5)
    [record] = fit(module, questions)
    failed = sum(not trajectory.valid for trajectory in record.trajectories)
    assert 0 < failed <= 4 and record.metrics["search/failed"] == failed / 16
    assert [score is None for score in record.scores] == [
        not trajectory.valid for trajectory in record.trajectories
    ]


def test_a_step_in_which_nothing_is_left_changes_nothing() -> None:
    failed = [make_turns_trajectory([ASK], sibling=n, **FAILED) for n in range(4)]
    before = {k: v.clone() for k, v in make_word_model().state_dict().items()}
    module = train_on(failed, max_failed_share=1.0)
    assert_unchanged(module, before)
    assert module.train_metrics["rollout/valid"] == 0.0
    assert "reward/f1" not in module.train_metrics, "no reward, which is not reward 0"


# -- behaviour ------------------------------------------------------------------------------------


def rewards_of_training(advantage: Any) -> tuple[SearchPolicyModule, list[float]]:
    from zerosearch.algorithms.advantages import grpo

    module = make_training(
        policy_steps=12,
        algorithm=Algorithm(group_size=8, advantage=advantage or grpo, kl_coefficient=0.0),
        optimizer=partial(torch.optim.Adam, lr=0.01),
    )
    records = fit(module, make_questions(4))
    return module, [record.metrics["reward/f1"] for record in records]


def test_reward_goes_up_within_a_few_steps() -> None:
    _, rewards = rewards_of_training(None)
    assert rewards[0] < 0.4, "one colour in four is right"
    assert sum(rewards[-3:]) / 3 > 0.75


def test_without_advantages_nothing_is_learned() -> None:
    module, rewards = rewards_of_training(zero)
    assert_unchanged(module, make_word_model().state_dict())
    assert max(rewards) < 0.5


# -- several updates a step -----------------------------------------------------------------------


def test_mini_batches_and_epochs_start_at_the_sampled_policy(
    updates: list[tuple[PolicyBatch, dict[str, float]]],
) -> None:
    module = make_training(
        algorithm=Algorithm(group_size=4, mini_batches=2, inner_epochs=2, kl_coefficient=0.01),
        optimizer=partial(torch.optim.SGD, lr=1.0),
        schedule=lambda optimizer, total: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: 1.0 - update / total
        ),
        gradient_clip=1e9,
    )
    [record] = fit(module, make_questions(5))
    ratios = [sums["ratio_sum"] / sums["tokens"] for _, sums in updates]
    gaps = [sums["logprob_gap_sum"] / sums["tokens"] for _, sums in updates]
    assert len(updates) == 4
    assert ratios[0] == pytest.approx(1.0, abs=1e-5)
    assert max(abs(ratio - 1.0) for ratio in ratios[1:]) > 1e-3, "the old policy stays the old one"
    assert max(gaps) < 1e-5, "the gap compares the old policy, which does not move"
    assert [batch.input_ids.shape[0] for batch, _ in updates] == [10] * 4
    tokens = sum(sum(trajectory.sampled) for trajectory in record.trajectories)
    assert sum(sums["tokens"] for _, sums in updates[:2]) == tokens, "an epoch sees every token"
    # rates 1, 0.75, 0.5, 0.25: the schedule counts optimizer updates
    assert record.metrics["optimizer/learning_rate"] == pytest.approx(0.625)


@pytest.mark.parametrize("budget", [64, 20])
def test_invariant_06_a_policy_step_does_not_depend_on_micro_batches(budget: int) -> None:
    def step(tokens: int) -> SearchPolicyModule:
        module = make_training(
            algorithm=Algorithm(group_size=4, kl_coefficient=0.1, entropy_coefficient=0.01),
            optimizer=partial(torch.optim.SGD, lr=1.0),
            tokens_per_micro_batch=tokens,
            gradient_clip=1e9,
        )
        fit(module, make_questions(3), Perturb())
        return module

    whole, split = step(100_000), step(budget)
    for name, tensor in weights(split).items():
        torch.testing.assert_close(tensor, weights(whole)[name], rtol=0, atol=1e-6)
    for name in ("loss/policy", "loss/kl", "loss/entropy", "optimizer/gradient_norm"):
        assert split.train_metrics[name] == pytest.approx(whole.train_metrics[name], abs=1e-6)


def test_large_gradients_are_clipped_and_reported_as_they_were() -> None:
    def moved(clip: float) -> tuple[float, float]:
        module = make_training(optimizer=partial(torch.optim.SGD, lr=1.0), gradient_clip=clip)
        fit(module, make_questions(4))
        start = make_word_model().state_dict()
        change = [(value - start[name]).flatten() for name, value in weights(module).items()]
        return float(torch.cat(change).norm()), module.train_metrics["optimizer/gradient_norm"]

    free, norm = moved(1e9)
    assert free == pytest.approx(norm, rel=1e-4)
    clipped, reported = moved(norm / 10)
    assert clipped == pytest.approx(norm / 10, rel=1e-3)
    assert reported == pytest.approx(norm)


# -- values that are not numbers ------------------------------------------------------------------


def stops_unchanged(module: SearchPolicyModule, error: type[Exception], message: str) -> None:
    before = {k: v.clone() for k, v in module.policy_source.load_model().state_dict().items()}
    with pytest.raises(error, match=message):
        fit(module, make_questions(2))
    assert_unchanged(module, before)
    assert module.policy_step == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number_stops_before_the_update(value: float) -> None:
    rubric = Rubric({"style": RewardTerm(function=lambda _: value)})
    said = r"'style' \(.*\) returned (nan|inf) \(float\) for question"
    stops_unchanged(make_training(rubric=rubric), ValueError, said)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_update(value: float) -> None:
    def broken(rewards: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
        return torch.full_like(rewards, value)

    algorithm = Algorithm(group_size=4, advantage=broken)
    module = make_training(algorithm=algorithm, max_skipped_updates=1)
    stops_unchanged(
        module, FloatingPointError, r"policy_loss.*not finite.*weights were not updated"
    )


def test_a_gradient_that_is_no_number_stops_before_the_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backward = SearchPolicyModule.manual_backward

    def poisoned(self: SearchPolicyModule, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        backward(self, loss, *args, **kwargs)
        assert self.model is not None
        next(self.model.parameters()).grad[0, 0] = math.nan  # type: ignore[index]

    monkeypatch.setattr(SearchPolicyModule, "manual_backward", poisoned)
    module = make_training(max_skipped_updates=1)
    stops_unchanged(module, FloatingPointError, r"gradient_norm.*nan.*not finite")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy_steps": 0}, "policy_steps=0"),
        ({"sampling": Sampling(temperature=0.0)}, r"sampling\.temperature=0"),
        ({"evaluations": {}}, "evaluation"),
    ],
)
def test_settings_that_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_training(**fields)


def test_invariant_10_a_prompt_beyond_its_budget_is_an_error_that_names_the_question() -> None:
    questions = make_questions(2)
    long = type(questions[0])(uid="long:1", text="why " * 30, golden_answers=("x",))
    module = make_training()
    with pytest.raises(ValueError, match=r"'long:1' has 31 tokens.*max_prompt_tokens=16"):
        fit(module, [*questions, long])


# -- what a step reports --------------------------------------------------------------------------

DOCUMENTED = (
    "reward/f1",
    "reward/em",
    "reward/cover_em",
    "rollout/turns",
    "rollout/searches",
    "rollout/tokens",
    "rollout/valid",
    "rollout/truncated",
    "rollout/logprob_gap",
    "rollout/lag",
    "stop/answer",
    "search/latency_s",
    "search/failed",
    "search/empty",
    "search/cached",
    "curriculum/noise_probability",
    "loss/policy",
    "loss/kl",
    "loss/entropy",
    "ratio/mean",
    "ratio/clipped",
    "advantage/zero_groups",
    "time/rollout_s",
    "time/train_s",
    "time/sync_s",
    "time/wait_s",
    "throughput/trajectories_per_s",
    "throughput/tokens_per_s",
    "memory/peak_gib",
    "optimizer/learning_rate",
    "optimizer/gradient_norm",
    "optimizer/skipped",
)


def test_a_step_reports_every_documented_metric() -> None:
    [record] = fit(make_training(), make_questions(4))
    assert not set(DOCUMENTED) - set(record.metrics)
    assert all(math.isfinite(value) for value in record.metrics.values())
    assert record.phase == "train" and len(record.trajectories) == len(record.advantages) == 16
    seconds = [record.metrics[f"time/{part}_s"] for part in ("rollout", "train", "sync")]
    assert min(seconds) > 0
    assert record.metrics["throughput/trajectories_per_s"] == pytest.approx(
        16 / sum(seconds), rel=0.2
    )


# -- checkpoints and export -----------------------------------------------------------------------


def train_saving(
    folder: Path,
    steps: int,
    checkpoint: Path | None = None,
    precision: Any = "32-true",
    **fields: Any,
) -> tuple[SearchPolicyModule, list[StepRecord]]:
    """Train with a checkpoint after every second step; returns the steps this run made."""
    module = make_training(
        policy_steps=steps,
        algorithm=Algorithm(group_size=4, mini_batches=2, kl_coefficient=0.01),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        **fields,
    )
    records, saving = Records(), PolicyCheckpoint(folder, every_n_steps=2, keep=None)
    writers = [MetricsCsv(folder), TranscriptWriter(folder / "transcripts")]
    callbacks = [records, *writers, saving]
    trainer = make_trainer(steps, callbacks=callbacks, val_every=2, precision=precision)
    data = make_data(make_questions(6), make_questions(1), questions_per_step=3)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, records.steps


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_invariant_13_training_continued_from_a_checkpoint_ends_the_same(
    precision: str, tmp_path: Path
) -> None:
    whole, early = train_saving(tmp_path, 4, precision=precision)
    second, late = train_saving(tmp_path, 4, tmp_path / "step_000002.ckpt", precision=precision)
    assert second.policy_step == 4 and [record.step for record in late] == [2, 3]
    assert_unchanged(second, weights(whole))
    start = make_word_model().state_dict()
    assert any(not torch.equal(tensor, start[name]) for name, tensor in weights(whole).items())
    for one, other in zip(late, early[2:], strict=True):
        assert [t.response_ids for t in one.trajectories] == [
            t.response_ids for t in other.trajectories
        ]
        assert one.metrics["loss/kl"] == other.metrics["loss/kl"] > 0


def test_invariant_13_micro_batches_stay_those_of_the_checkpoint(tmp_path: Path) -> None:
    """Whatever memory the machine has on which a run goes on."""
    whole, _ = train_saving(tmp_path, 4, tokens_per_micro_batch=20)
    resumed, _ = train_saving(tmp_path, 4, tmp_path / "step_000002.ckpt")
    assert resumed.micro_batches().tokens == 20
    assert_unchanged(resumed, weights(whole))
    told, _ = train_saving(tmp_path, 4, tmp_path / "last.ckpt", tokens_per_micro_batch=30)
    assert told.micro_batches().tokens == 30, "unless the setting says otherwise"


def test_invariant_04_a_lost_engine_ends_the_run_with_all_whole_steps_saved(tmp_path: Path) -> None:
    def searching() -> PreTrainedModel:
        return make_word_model(ask=1.0)

    whole, every = train_saving(tmp_path / "whole", 4, model=searching())
    searches = sum(len(t.searches) for record in every[:3] for t in record.trajectories)
    validations = 1  # the search of the one question held out, after step 2

    def dying(request: SearchRequest) -> list[str]:
        if len(engine.requests) > searches + validations:
            raise SearchError("http://search.test/retrieve", "connection refused")
        return ["red or blue"]

    engine = ScriptedEngine(dying)
    with pytest.raises(SearchOutage, match=r"http://search\.test/retrieve: connection refused"):
        train_saving(tmp_path, 4, model=searching(), search=engine)
    assert (tmp_path / "step_000003.ckpt").is_file(), "though only every second step is saved"
    died = read_rows(tmp_path / "metrics.csv")[-1]
    assert died["step"] == "3" and float(died["search/failed"]) > 0.1 and died["loss/policy"] == ""
    written = (tmp_path / "transcripts" / "train" / "step_000003.jsonl").read_text()
    assert "connection refused" in written
    resumed, made = train_saving(tmp_path, 4, tmp_path / "last.ckpt", model=searching())
    assert [record.step for record in made] == [3]
    assert_unchanged(resumed, weights(whole))


def test_a_finished_run_is_continued_by_raising_its_steps(tmp_path: Path) -> None:
    whole, _ = train_saving(tmp_path / "whole", 4)
    train_saving(tmp_path, 2)
    again, made = train_saving(tmp_path, 2, tmp_path / "last.ckpt")
    assert (again.policy_step, made) == (2, [])
    longer, made = train_saving(tmp_path, 4, tmp_path / "last.ckpt")
    assert (longer.policy_step, [record.step for record in made]) == (4, [2, 3])
    assert_unchanged(longer, weights(whole))
    assert longer.evaluation_records[0].step == 4, "and validated at its end"


def test_invariant_16_a_checkpoint_of_another_episode_is_refused() -> None:
    saved: dict[str, Any] = {}
    module = make_training()
    module.model = make_word_model()
    module.on_save_checkpoint(saved)
    other = dataclasses.replace(EPISODE, top_k=3)
    with pytest.raises(ValueError, match=r"episode\.top_k is 3 but .* trained with 1"):
        make_training(episode=other).on_load_checkpoint(saved)
    with pytest.raises(ValueError, match="not written by this project"):
        make_training().on_load_checkpoint({"state_dict": {}})


def test_a_checkpoint_says_its_version_and_one_of_0_1_is_refused() -> None:
    module, saved = make_training(), dict[str, Any]()
    module.model = make_word_model()
    module.on_save_checkpoint(saved)
    assert saved["zerosearch"].pop("version") == __version__
    with pytest.raises(ValueError, match=rf"0\.1, and this is {__version__}: go on with 0\.1"):
        make_training().on_load_checkpoint(saved)


def test_the_export_is_the_trained_policy_with_its_episode(tmp_path: Path) -> None:
    module = make_training()
    fit(module, make_questions(2))
    module.export_policy(tmp_path / "policy")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert_unchanged(module, loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer.encode("<answer> red") == [VOCABULARY.index("<answer>"), RED]
    settings = load_settings(tmp_path / "policy")
    assert settings["episode"]["max_turns"] == EPISODE.max_turns
    assert settings["episode"]["prompt_text"] == EPISODE.as_dict()["prompt_text"]
    assert settings["chat"] is False


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_invariant_19_the_export_is_loaded_as_the_run_computed(dtype: Any, tmp_path: Path) -> None:
    module = make_training()
    fit(module, make_questions(2), precision="bf16-mixed")
    module.export_policy(tmp_path / "policy", dtype)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert loaded.dtype == (torch.float32 if dtype else torch.bfloat16)
    kept = {name: weight.to(loaded.dtype) for name, weight in weights(module).items()}
    assert all(torch.equal(kept[name], weight) for name, weight in loaded.state_dict().items())
    assert load_settings(tmp_path / "policy")["dtype"] == "bfloat16"
    assert {weight.dtype for weight in weights(module).values()} == {torch.float32}, "trained"
