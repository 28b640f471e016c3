"""Folders of sweeps and of their jobs: what differs, fit for every file system, and unique."""

from __future__ import annotations

import re
from typing import Any

import pytest
from omegaconf import OmegaConf

from zerosearch.core.sweep_names import job_name, names_apart, sweep_name, swept_keys

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
HOSTILE = [
    "../../etc/passwd",
    "/a/very/long/path/of/a/model/somewhere/on/a/shared/disk/checkpoint-100",
    "/a/very/long/path/of/a/model/somewhere/on/another/disk/checkpoint-100",
    "[a,b]",
    "[a, b]",
    "{a:1}",
    "a b",
    "a_b",
    "a\nb",
    "a\x00b",
    "naïve",
    "naive",
    "\ud800",
    "..",
    ".",
    "",
    "'quoted'",
    "-rf",
    "${oc.env:HOME}",
    "x" * 300,
    "x" * 301,
]


def test_a_job_is_named_by_what_differs() -> None:
    assert job_name({"simulator": "scripted_good", "seed": "1"}) == "simulator=scripted_good,seed=1"
    assert job_name({"optimizer.lr": "1e-4"}) == "optimizer.lr=1e-4"


def test_hostile_and_long_values_stay_apart_and_in_their_folder() -> None:
    names = [job_name({"key": value}) for value in HOSTILE]
    assert len({*names}) == len(HOSTILE)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9._+=,-]{1,160}", name) and name.startswith("key=")
    assert names[1].startswith("key=") and "checkpoint-100" in names[1], (
        "the end of a path says most"
    )
    many = [job_name({f"key{n}": "value" for n in range(size)}) for size in (60, 61)]
    assert len({*many}) == 2 and max(map(len, many)) <= 160


def test_jobs_that_differ_in_nothing_are_numbered() -> None:
    assert names_apart(["a", "b", "a", "a"]) == ["a", "b", "a,2", "a,3"]


def test_keys_with_several_values_are_swept_and_the_last_word_counts() -> None:
    words = ["seed=0,1", "policy_steps=5", "lr=1,2", "lr=3", "x=range(1,4)", "y=[1,2]", "z='a,b'"]
    assert swept_keys(words, {"simulator": "a,b", "seed": "7"}) == ["simulator", "seed", "x"]


def name_of(*words: str, **sweeper: Any) -> str:
    node = {"sweeper": {"_target_": BASIC, "params": None} | sweeper, "overrides": {"task": words}}
    return sweep_name(_root_=OmegaConf.create({"hydra": node}))


def test_the_same_words_make_the_same_sweep_in_any_order() -> None:
    name = name_of("simulator=a,b", "seed=0,1", "policy_steps=5")
    assert re.fullmatch(r"simulator\+seed-[0-9a-f]{6}", name)
    assert (
        name
        == name_of("policy_steps=5", "simulator=a,b", "seed=0,1", "threads=2", "paths.x=y")[
            : len(name)
        ]
    )
    others = [
        name_of("simulator=a,b", "seed=0,1", "policy_steps=6"),
        name_of("simulator=a,b", "seed=0,1,2", "policy_steps=5"),
        name_of("simulator=a,b", "seed=0,1", "policy_steps=5", params={"x": "1"}),
    ]
    assert len({name, *others}) == 4


@pytest.mark.parametrize("settings", [{"sampler": {"seed": 1}}, {"sampler": {}, "storage": "x"}])
def test_a_search_that_draws_the_same_again_is_the_same_sweep(settings: dict[str, Any]) -> None:
    words = ("lr=interval(1,2)",)
    assert name_of(*words, **settings) == name_of(*words, **settings)
    assert name_of(*words, **settings).startswith("lr-")
    assert name_of(*words, sampler={"seed": None}).startswith("20"), "the time"
