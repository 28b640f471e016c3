"""Which health rules fired in a run, and when: from its metrics, as the run itself saw them."""

from __future__ import annotations

from dataclasses import dataclass

from zerosearch.callbacks.health_rules import HealthRule, RuleTracker
from zerosearch.core.errors import InputError
from zerosearch.core.plain import from_plain
from zerosearch.report.run_folder import RunFolder


@dataclass(kw_only=True, slots=True, frozen=True)
class Firing:
    """A rule that was broken for long enough."""

    rule: str
    action: str  # warn or stop
    first: int  # policy step in which it fired
    last: int  # last one in a row
    said: str  # what was seen
    advice: str


def watched(run: RunFolder) -> dict[str, HealthRule]:
    """The rules of a run by name; none where its configuration was not kept.

    A rule that this version cannot read is left out.
    """
    rules = {}
    for name, values in (run.config.get("health") or {}).items():
        try:
            rules |= {name: from_plain(HealthRule, values, f"health.{name}")} if values else {}
        except InputError:
            continue
    return rules


def firings(run: RunFolder) -> list[Firing]:
    """Each time that a rule fired, the earliest first.

    `metrics.csv` holds the rows of all continuations, and a monitor goes on with the state that it
    had, so that one pass over the rows sees what the run saw.
    """
    found = []
    for name, rule in watched(run).items():
        tracker = RuleTracker(rule)
        present: Firing | None = None
        for step, value in zip(run.steps, run.column(rule.metric), strict=True):
            if value is None:
                continue
            tracker.add(value)
            if not tracker.fired:
                found += [present] if present else []
                present = None
                continue
            present = Firing(
                rule=name,
                action=rule.action,
                first=present.first if present else step,
                last=step,
                said=tracker.describe(),
                advice=rule.advice,
            )
        found += [present] if present else []
    return sorted(found, key=lambda firing: firing.first)
