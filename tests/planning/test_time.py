"""The arithmetic of time, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.helpers.configs import CONFIGS
from tests.helpers.models import LLAMA
from zerosearch.planning.episodes import EpisodeTokens, SearchSpeed, going_on, rollout
from zerosearch.planning.speeds import Card, ReplicatedModel, Size, Speeds, card_named
from zerosearch.planning.time import Evaluations, StepTimes, Work, times_of, variants
from zerosearch.policy.activation_memory import Shape
from zerosearch.policy.flops import step_flops, training_flops
from zerosearch.policy.source import PolicySource

CARD = Card(flop_s=1e12, memory_bytes_s=1e10, link_bytes_s=1e9, gib=80)
SPEEDS = Speeds(
    cards={},
    network_bytes_s=5e8,
    disk_bytes_s=1e8,
    mfu=0.5,
    prefill_share=0.5,
    decode_share=0.5,
    decode_host_s=0.0,
    turn_share=0.25,
    retrieval_s=2.0,
    retrieved_words=100,
)
SIZE = Size(parameters=1e9)  # 2 GB
EPISODE = EpisodeTokens(
    prompt=80, turn=10, documents=20, searches=1.0, max_searches=1, group_size=4
)  # 120 tokens


def engine(**fields: Any) -> ReplicatedModel:
    settings: dict[str, Any] = {"size": SIZE, "card": CARD, "speeds": SPEEDS, "replicas": 2}
    return ReplicatedModel(**{**settings, "rows": 1000, **fields})


def work(**fields: Any) -> Work:
    retrieval = SearchSpeed(engine=None, latency_s=2.0)
    settings: dict[str, Any] = {
        "speeds": SPEEDS,
        "card": CARD,
        "gpus": 2,
        "nodes": 1,
        "policy_steps": 10,
        "episodes": 8,
        "episode": EPISODE,
        "size": SIZE,
        "sampler": engine(),
        "sampler_apart": False,
        "ahead": False,
        "search": retrieval,
        "shares_simulator": False,
        "trained": 1.0,
        "forwards": 1,
        "updates": 1,
        "sent_bytes": 2e9,
        "sharded": True,
        "saved_bytes": 1e9,
        "save_every": 5,
        "evaluations": Evaluations(
            searches=(retrieval,), validations=2, of_validation=16, tests=0, of_test=0, batch=8
        ),
    }
    return Work(**{**settings, **fields})


@pytest.mark.parametrize(("mean", "most"), [(1.5, 5), (0.3, 4), (4.0, 4), (0.0, 3), (0.0, 0)])
def test_so_many_go_on_that_the_mean_is_kept(mean: float, most: int) -> None:
    shares = going_on(mean, most)
    assert shares[0] == 1 and len(shares) == most + 1
    assert sum(shares[1:]) == pytest.approx(mean, abs=1e-6)
    assert shares == sorted(shares, reverse=True)


def test_tokens_are_multiplied_with_weights_and_attend() -> None:
    size = Size(parameters=100, attention=3)
    assert size.forward_flops(context=10) == 2 * 100 + 2 * 3 * 10
    assert training_flops(10, trained=1.0) == 3 * 10
    assert training_flops(10, trained=0.0) == 2 * 10, "adapters"


def test_a_token_of_a_run_needs_what_a_step_counts() -> None:
    """The exact count of known sequences, where the head reads every token."""
    model = PolicySource(
        path="x", architecture={**LLAMA, "attention_bias": False}, random_init=True
    ).build_on_meta()
    shape, tokens = Shape(model.config), 500
    size = Size.of_policy(shape, sum(p.numel() for p in model.parameters()), False, 2)
    found = training_flops(tokens * size.forward_flops(tokens))
    assert found == pytest.approx(step_flops(shape, [tokens], tokens), rel=0.01), "but for norms"


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H100 NVL", "h100_nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_device_is_one_of_the_cards(device: str, card: str | None) -> None:
    assert card_named(device, OmegaConf.load(CONFIGS / "speeds" / "published.yaml").cards) == card


def test_a_step_of_decoding_reads_weights_or_computes_whichever_is_slower() -> None:
    # 2 GB at half of 10 GB/s; 4 rows a replica need 8 GFLOP at half of 1 TFLOP/s
    assert engine().writing_s(8, tokens=10, context=0) == pytest.approx(10 * 0.4)
    # 250 rows: 500 GFLOP
    assert engine().writing_s(500, tokens=10, context=0) == pytest.approx(10 * 1.0)
    host = dataclasses.replace(SPEEDS, decode_host_s=0.1)
    assert engine(speeds=host).writing_s(8, 10, 0) == pytest.approx(10 * 0.5)
    assert engine(rows=2).writing_s(8, 10, 0) == pytest.approx(2 * 10 * 0.4), "two waves"
    assert engine(gpus_each=2).writing_s(8, 10, 0) == pytest.approx(10 * 0.2)
    cached = dataclasses.replace(SIZE, kv_bytes=1e6)
    assert engine(size=cached).writing_s(8, 10, context=500) == pytest.approx(10 * 0.8)


def test_a_rollout_is_turns_with_searches_between() -> None:
    played = rollout(8, EPISODE, engine(), SearchSpeed(engine=None, latency_s=2.0))
    # prompts are read once for 4 siblings: 8 x 20 tokens; then 8 x 20 of documents
    read = 2 * (8 * 20 * 2e9 / 1e12)
    assert played.sampling == pytest.approx(read + 2 * 10 * 0.4) and played.searching == 2.0
    simulator = SearchSpeed(engine=engine(replicas=1), read=50, written=5)
    asked = rollout(8, EPISODE, engine(), simulator)
    assert asked.searching == pytest.approx(8 * 50 * 2e9 / 5e11 + 5 * 0.4)


def test_stages_of_a_step() -> None:
    times = times_of(work())
    tokens = 8 * 120
    assert times.reference == pytest.approx(tokens * 2e9 / 1e12)
    assert times.update == pytest.approx(3 * times.reference)
    assert times.sync == pytest.approx(2e9 / 2 / 1e9 + 2e9 / 5e9), "half comes in, all goes out"
    assert times.checkpoint == pytest.approx(1e9 / 1e8 / 5)
    # two validations of 16 questions in 10 steps, 8 at a time, siblings of nobody
    alone = dataclasses.replace(EPISODE, group_size=1)
    batch = rollout(8, alone, engine(), SearchSpeed(engine=None, latency_s=2.0))
    assert times.validation.total == pytest.approx(2 * 2 * batch.total / 10)
    assert times.step == pytest.approx(
        times.rollout.total
        + times.reference
        + times.update
        + times.sync
        + times.validation.total
        + times.checkpoint
    )
    assert times.hours == pytest.approx(times.step * 10 / 3600)


def overlapped(times: StepTimes) -> float:
    """Seconds of rollout and learning in a step."""
    return times.step - times.sync - times.validation.total - times.checkpoint


def test_what_sampling_ahead_saves() -> None:
    times = times_of(work(ahead=True))
    learning = times.reference + times.update
    both = max(times.rollout.total, times.rollout.sampling + learning)
    assert overlapped(times) == pytest.approx(both), "the same GPUs do both"
    apart = times_of(work(ahead=True, sampler_apart=True))
    assert overlapped(apart) == pytest.approx(max(apart.rollout.total, learning))
    shared = times_of(work(ahead=True, shares_simulator=True))
    assert overlapped(shared) == pytest.approx(shared.rollout.total + learning), "one GPU does all"


def test_who_waits() -> None:
    simulator = SearchSpeed(engine=engine(replicas=1), read=50, written=5)
    times = times_of(work(search=simulator))
    (gpus, trainers), (servers, waiting) = times.idle.values()
    assert (gpus, servers) == (2, 1)
    waits = times.rollout.searching + times.validation.searching
    assert trainers == pytest.approx(waits / times.step), "they wait for searches"
    assert waiting == pytest.approx(1 - times.rollout.searching / times.step)
    assert times.searches_s == pytest.approx(8 / times.rollout.searching)
    assert list(times_of(work(sampler_apart=True, ahead=True)).idle) == ["train", "sample"]


def test_what_would_change_it() -> None:
    simulator = SearchSpeed(engine=engine(replicas=1), read=50, written=5)
    found = {name: times_of(each).step for name, each in variants(work(search=simulator)).items()}
    configured, lag, split, smaller, more = found.values()
    assert configured > lag > split and max(smaller, more) < configured
    assert list(variants(work(sent_bytes=0.0))) == ["as configured"], "it samples from the policy"
    assert "rollout.lag=1" not in variants(work(ahead=True))
