from __future__ import annotations

import math
from typing import Any

import pytest

from zerosearch.callbacks.health_rules import HealthRule, RuleTracker


def track(values: list[float], **settings: Any) -> list[int]:
    """Unhealthy steps in a row after each value."""
    tracker = RuleTracker(HealthRule(metric="a/b", **settings))
    found = []
    for value in values:
        tracker.add(value)
        found.append(tracker.unhealthy_steps)
    return found


@pytest.mark.parametrize(
    ("settings", "values", "expected"),
    [
        ({"above": 0.5, "average": 1}, [0.4, 0.6, 0.5, 0.7, 0.8], [0, 1, 0, 1, 2]),
        ({"below": 0.5, "average": 2}, [0.4, 0.8, 0.1, 0.2], [1, 0, 1, 2]),  # 0.4 0.6 0.45 0.15
        # the first average is (1 + 3) / 2; nothing is unhealthy before it is known
        ({"above": 2.0, "of": "start", "average": 2}, [1, 3, 4, 5, 1], [0, 0, 0, 1, 0]),
        # the best average rises to 6; 2.5 is below half of it, 3.5 is not
        ({"below": 0.5, "of": "best", "average": 2}, [1, 5, 7, 0, 5, 0, 0], [0, 0, 0, 0, 1, 2, 3]),
        # with `above` the healthiest average is the lowest: 2, so that 5 is beyond twice it
        ({"above": 2.0, "of": "best", "average": 1}, [3, 2, 4, 5, 6], [0, 0, 0, 1, 2]),
        # nothing is a multiple of 0, but more than it by a margin
        ({"above": 2.0, "of": "start", "average": 1, "margin": 0.5}, [0, 0.5, 0.6], [0, 0, 1]),
        ({"below": 0.5, "of": "best", "average": 1, "margin": 1.0}, [8, 3, 2.9], [0, 0, 1]),
        # rewards with penalties begin below 0: no share of that is a collapse, one of 0.4 is
        ({"below": 0.3, "of": "best", "average": 1}, [-0.2, -0.1, -0.3, 0.4, 0.1], [0, 0, 0, 0, 1]),
        ({"above": 9.0, "average": 2}, [1, math.nan, 1, 1], [0, 1, 2, 0]),
        ({"below": 0.5, "of": "best", "average": 1}, [math.inf, 1.0, 0.4], [0, 0, 1]),
    ],
)
def test_averages_are_compared_with_their_base(
    settings: dict[str, Any], values: list[float], expected: list[int]
) -> None:
    assert track(values, **settings) == expected


def test_a_rule_fires_after_enough_steps_and_says_what_it_saw() -> None:
    tracker = RuleTracker(
        HealthRule(metric="reward/total", below=0.3, of="best", average=2, steps=2)
    )
    for value in (0.3, 0.5, 0.1, 0.1):
        tracker.add(value)
    assert tracker.broken and not tracker.fired
    tracker.add(0.0)
    assert tracker.fired
    assert tracker.describe() == (
        "reward/total is 0.05 on average over 2 steps, below 0.3 times its best average, 0.4, "
        "for 2 steps in a row"
    )


def test_a_rule_with_a_margin_says_so() -> None:
    rule = HealthRule(metric="a/b", above=2.0, of="best", average=1, steps=1, margin=0.25)
    tracker = RuleTracker(rule)
    for value in (0.5, 0.125, 0.75):
        tracker.add(value)
    assert tracker.describe() == (
        "a/b is 0.75 on average over 1 steps, above 2 times its best average, 0.125, by more than "
        "0.25, for 1 steps in a row"
    )


@pytest.mark.parametrize("cut", range(7))
def test_a_resumed_tracker_goes_on_as_before(cut: int) -> None:
    values = [1.0, 5.0, 7.0, 0.0, 5.0, 0.0, 0.0]
    rule = HealthRule(metric="a/b", below=0.5, of="best", average=2)
    whole, first, second = RuleTracker(rule), RuleTracker(rule), RuleTracker(rule)
    for value in values:
        whole.add(value)
    for value in values[:cut]:
        first.add(value)
    second.load_state_dict(first.state_dict())
    for value in values[cut:]:
        second.add(value)
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "above=None and below=None of the health rule for a/b"),
        ({"above": 1.0, "below": 1.0}, "exactly one"),
        ({"above": 1.0, "of": "mean"}, "of='mean'.*value or start or best"),
        ({"above": 1.0, "action": "kill"}, "action='kill'.*warn or stop"),
        ({"above": 1.0, "average": 0}, "average=0"),
        ({"above": 1.0, "steps": 0}, "steps=0"),
        ({"above": 1.0, "margin": -0.1}, "margin=-0.1"),
        ({"above": 1.0, "margin": math.nan}, "margin=nan"),
    ],
)
def test_bad_rules_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HealthRule(metric="a/b", **settings)
