"""Which examples a step gets: a function of seed and step, the same for any number of ranks."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.policy_stub import PolicyStub, make_trainer
from tests.helpers.tuning import write_rows
from zerosearch.tuning.datamodule import TuningData, TuningLoader
from zerosearch.tuning.tuning_set import TuningFiles


def loader(count: int = 10, **fields: Any) -> TuningLoader:
    settings = {"per_step": 4, "seed": 0, "rank": 0, "world_size": 1, "steps_done": lambda: 0}
    return TuningLoader(list(range(count)), **{**settings, **fields})  # type: ignore[arg-type]


def take(loader: TuningLoader, steps: int) -> list[tuple[Any, ...]]:
    return [batch.examples for batch, _ in zip(loader, range(steps), strict=False)]


def test_every_epoch_has_every_example_once_in_another_order() -> None:
    drawn = [each for batch in take(loader(), 15) for each in batch]
    epochs = [drawn[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_it_goes_on_from_where_training_stands() -> None:
    assert take(loader(steps_done=lambda: 3), 4) == take(loader(), 7)[3:]
    assert take(loader(seed=1), 3) != take(loader(), 3)


def test_ranks_share_every_step() -> None:
    parts = [take(loader(rank=rank, world_size=3), 5) for rank in range(3)]
    joined = [sum((part[step] for part in parts), ()) for step in range(5)]
    assert joined == take(loader(), 5)


def test_validation_keeps_a_fixed_choice(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 60)
    files = TuningFiles(train=str(rows), validation_share=0.5)
    few = TuningData(files, examples_per_step=1, validation_limit=5).validation
    more = TuningData(files, examples_per_step=1, validation_limit=9).validation
    assert len(few) == 5 and more[:5] == few
    assert len(TuningData(files, examples_per_step=1).validation) == 30


def test_a_resumed_run_refuses_other_examples(tmp_path: Path) -> None:
    def data(name: str, count: int = 40, **changes: Any) -> TuningData:
        rows = write_rows(tmp_path / f"{name}.jsonl", count)
        made = TuningData(TuningFiles(train=str(rows)), **{"examples_per_step": 2, **changes})
        made.trainer = make_trainer(1, callbacks=[])
        made.trainer.strategy.connect(PolicyStub(1))
        return made

    saved = data("rows").state_dict()
    cases: tuple[tuple[str, int, dict[str, int], str | None], ...] = (
        ("moved", 40, {}, None),
        ("rows", 44, {}, "digest was"),
        ("rows", 40, {"examples_per_step": 4}, "examples_per_step was 2, is 4"),
        ("rows", 40, {"seed": 1}, "seed was 0, is 1"),
    )
    for name, count, changes, said in cases:
        other = data(name, count, **changes)
        other.load_state_dict(saved)
        refused = pytest.raises(ValueError, match=f"differ .*{said}") if said else nullcontext()
        with refused:
            other.train_dataloader()


@pytest.mark.parametrize("fields", [{"examples_per_step": 0}, {"validation_limit": 0}])
def test_settings_out_of_range(fields: dict[str, Any]) -> None:
    settings = {"examples_per_step": 1, **fields}
    name = next(iter(fields))
    with pytest.raises(ValueError, match=rf"data\.{name}=0: give 1 or more"):
        TuningData(TuningFiles(train="x"), **settings)
