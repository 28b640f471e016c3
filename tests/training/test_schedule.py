import math
from typing import Any

import pytest
import torch
from torch.optim import SGD

from zerosearch.training.schedule import warmup_schedule


def optimizer(*rates: float) -> SGD:
    groups = [{"params": [torch.zeros(1)], "lr": rate} for rate in rates]
    return SGD(groups)


def rates(total: int, updates: int, peak: float = 2.0, **fields: Any) -> list[float]:
    """The learning rate of each update."""
    source = optimizer(peak)
    schedule = warmup_schedule(source, total, **fields)
    found = []
    for _ in range(updates):
        found.append(source.param_groups[0]["lr"])
        source.step()
        schedule.step()
    return found


def test_warm_up_is_linear_and_its_first_update_already_learns() -> None:
    assert rates(8, 10, warmup_fraction=0.5) == pytest.approx([0.5, 1.0, 1.5] + [2.0] * 7)


def test_without_warm_up_the_first_update_has_the_peak_rate() -> None:
    assert rates(4, 4) == [2.0] * 4


def test_the_papers_warm_up_covers_nearly_the_whole_run() -> None:
    found = rates(203, 203, peak=1e-6, warmup_fraction=0.95)  # 193 of 203 updates warm up
    assert found[0] == pytest.approx(1e-6 / 193)
    assert found[96] == pytest.approx(97e-6 / 193)
    assert found[192:] == pytest.approx([1e-6] * 11)


def test_linear_decay() -> None:
    found = rates(6, 8, warmup_fraction=1 / 3, decay="linear", final_share=0.2)
    assert found == pytest.approx([1.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4, 0.4])


def test_cosine_decay() -> None:
    found = rates(4, 6, decay="cosine")
    expected = [1 + math.cos(math.pi * update / 4) for update in range(4)] + [0.0, 0.0]
    assert found == pytest.approx(expected)


def test_a_decay_after_a_warm_up_of_the_whole_run_stays_in_bounds() -> None:
    found = rates(3, 5, warmup_fraction=1.0, decay="linear")
    assert found == pytest.approx([2 / 3, 4 / 3, 2.0, 2.0, 0.0])


def test_every_parameter_group_keeps_its_own_peak() -> None:
    source = optimizer(1.0, 10.0)
    warmup_schedule(source, 4, warmup_fraction=0.5)
    assert [group["lr"] for group in source.param_groups] == [0.5, 5.0]


def test_invariant_13_a_resumed_schedule_goes_on_where_it_was() -> None:
    fields: dict[str, Any] = {"warmup_fraction": 0.4, "decay": "cosine", "final_share": 0.1}
    whole = rates(10, 10, **fields)
    first = optimizer(2.0)
    schedule = warmup_schedule(first, 10, **fields)
    for _ in range(6):
        first.step()
        schedule.step()
    second = optimizer(2.0)
    resumed = warmup_schedule(second, 10, **fields)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    found = []
    for _ in range(4):
        found.append(second.param_groups[0]["lr"])
        second.step()
        resumed.step()
    assert found == whole[6:], "bit for bit"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_fraction": 1.1}, "schedule.warmup_fraction=1.1: give a share from 0 to 1"),
        ({"warmup_fraction": float("nan")}, "schedule.warmup_fraction=nan"),
        ({"final_share": -0.1}, "schedule.final_share=-0.1"),
        ({"decay": "step"}, "schedule.decay='step': give constant, linear or cosine"),
    ],
)
def test_a_bad_option_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        warmup_schedule(optimizer(1.0), 10, **fields)
