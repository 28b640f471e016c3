"""What a sweep that searches for the best settings goes by."""

from __future__ import annotations

import json
from typing import Any

import pytest
from omegaconf import OmegaConf

from zerosearch.command_line import optimized
from zerosearch.command_line.optimized import JobFailed, check_optimized, optimized_value


def settings(**changes: Any) -> Any:
    optimized = {"metric": "test/f1", "direction": "maximize"} | changes
    return OmegaConf.create({"optimized": optimized, "test": True, "evaluation": {"own": {}}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"direction": "up"}, "optimized.direction=up: give maximize or minimize"),
        ({"metric": "f1"}, "optimized.metric=f1: give a name of summary.json"),
        ({"metric": "test/f2"}, "test/f2 is not measured; there are test/f1, .* test/own"),
    ],
)
def test_a_metric_that_no_job_will_have_is_refused(changes: dict[str, str], said: str) -> None:
    check_optimized(settings())
    check_optimized(settings(metric="test/own/em"))
    with pytest.raises(ValueError, match=said):
        check_optimized(settings(**changes))


def test_a_job_without_the_metric_fails_a_search_and_no_other_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = json.loads('{"test/f1": 0.5}')
    assert optimized_value(settings(), facts) == 0.5
    assert optimized_value(settings(metric="loss/policy"), facts) is None
    monkeypatch.setattr(optimized, "_searches", lambda: True)
    with pytest.raises(JobFailed, match=r"loss/policy: summary\.json has none"):
        optimized_value(settings(metric="loss/policy"), facts)
    cfg = settings()
    cfg.test = False
    with pytest.raises(ValueError, match="test/f1 is not measured with test=false"):
        check_optimized(cfg)
