"""Rules about the metrics of policy steps: what a healthy run does not do for long."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, get_args

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count

Base = Literal["value", "start", "best"]
HealthAction = Literal["warn", "stop"]


@dataclass(kw_only=True, slots=True, frozen=True)
class HealthRule:
    """A bound on the moving average of one metric.

    Raises:
        InputError: a setting is out of its range, or there is not exactly one bound.
    """

    metric: str  # as in metrics.csv, for example reward/total
    above: float | None = None  # unhealthy beyond this many times the base
    below: float | None = None  # unhealthy under this many times the base
    of: Base = "value"  # base: 1; the first average; the healthiest average so far
    margin: float = 0.0  # how far beyond that bound it has to be, for a base that may be near 0
    average: Count = 5  # policy steps that are averaged
    steps: Count = 3  # policy steps in a row that have to be unhealthy
    action: HealthAction = "warn"
    advice: str = ""  # what to try, for the message

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise InputError(
                f"above={self.above} and below={self.below} of the health rule for {self.metric}: "
                "give exactly one of them"
            )
        for name, options in (("of", get_args(Base)), ("action", get_args(HealthAction))):
            if (value := getattr(self, name)) not in options:
                raise InputError(
                    f"{name}={value!r} of the health rule for {self.metric}: give "
                    f"{' or '.join(options)}"
                )
        if not 0 <= self.margin < math.inf:
            raise InputError(
                f"margin={self.margin} of the health rule for {self.metric}: give 0 or more"
            )
        for name in ("average", "steps"):
            if (value := getattr(self, name)) < 1:
                raise InputError(
                    f"{name}={value} of the health rule for {self.metric}: give 1 or more"
                )


class RuleTracker:
    """One rule along a run.

    Attributes:
        unhealthy_steps: policy steps in a row, up to now, in which the rule was broken.
    """

    def __init__(self, rule: HealthRule) -> None:
        self.rule = rule
        self.unhealthy_steps = 0
        self._recent: deque[float] = deque(maxlen=rule.average)
        self._base: float | None = 1.0 if rule.of == "value" else None

    @property
    def broken(self) -> bool:
        """Whether the rule is broken now."""
        return self.unhealthy_steps > 0

    @property
    def doubtful(self) -> bool:
        """Whether the rule is broken now, or would be if the last policy step stood alone.

        A moving average still looks well some steps after a collapse. While there is no base to
        compare with, the average so far is one.
        """
        if self.broken or not self._recent:
            return self.broken
        value = self._recent[-1]
        base = self._mean() if self._base is None else self._base
        return math.isnan(value) or self._is_beyond(value, base)

    @property
    def fired(self) -> bool:
        """Whether the rule has been broken for long enough."""
        return self.unhealthy_steps >= self.rule.steps

    def add(self, value: float) -> None:
        """Take the metric of the next policy step into account."""
        self._recent.append(value)
        mean = self._mean()
        broken = self._base is not None and self._is_beyond(mean, self._base)
        # NaN is never healthy and never becomes a base
        self.unhealthy_steps = self.unhealthy_steps + 1 if broken or math.isnan(mean) else 0
        if len(self._recent) < self.rule.average or not math.isfinite(mean):
            return
        if self.rule.of == "best":
            best = max if self.rule.above is None else min
            self._base = mean if self._base is None else best(self._base, mean)
        elif self._base is None:
            self._base = mean

    def describe(self) -> str:
        """What was seen, in words."""
        rule = self.rule
        side, bound = ("above", rule.above) if rule.below is None else ("below", rule.below)
        base = (
            {
                "value": "",
                "start": f" times the {self._base:.4g} of the first steps",
                "best": f" times its best average, {self._base:.4g}",
            }[rule.of]
            if self._base is not None
            else ""
        )
        margin = f", by more than {rule.margin:g}" if rule.margin else ""
        return (
            f"{rule.metric} is {self._mean():.4g} on average over {len(self._recent)} steps, "
            f"{side} {bound:g}{base}{margin}, for {self.unhealthy_steps} steps in a row"
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "recent": list(self._recent),
            "base": self._base,
            "unhealthy_steps": self.unhealthy_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.extend(state["recent"])
        self.unhealthy_steps = state["unhealthy_steps"]
        if self.rule.of != "value":
            self._base = state["base"]

    def _mean(self) -> float:
        return sum(self._recent) / len(self._recent)

    def _is_beyond(self, mean: float, base: float) -> bool:
        rule = self.rule
        if rule.above is not None:
            return base >= 0 and mean > rule.above * base + rule.margin
        assert rule.below is not None
        # a share of a base that is not above 0, as rewards with penalties begin, says nothing
        return base > 0 and mean < rule.below * base - rule.margin
