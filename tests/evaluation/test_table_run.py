"""The rows of a table: what cannot be played is said before anything is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.test_asking import QUESTIONS, Counting
from tests.helpers.engines import ScriptedEngine
from zerosearch.core.errors import InputError
from zerosearch.evaluation.benchmarks import Benchmark
from zerosearch.evaluation.table_run import Method, TableEngine, TableRun


class Ten:
    def load(self) -> Any:
        return QUESTIONS


class Unable(Counting):
    async def check(self) -> None:
        raise InputError("model.path=x has no chat template")


async def test_a_method_that_cannot_play_ends_the_table_before_its_first_question(
    tmp_path: Path,
) -> None:
    able, engine = Counting(), ScriptedEngine(["1"])
    table = TableRun(
        methods={
            "able": Method(label="able", agent=able),
            "unable": Method(label="unable", agent=Unable()),
        },
        engines={"own": TableEngine(label="own", search=engine)},
        benchmarks={"ten": Benchmark(label="ten", source=Ten())},
        client=lambda: pytest.fail("no method is prompted"),
        block=4,
        max_failed_share=0.0,
        seed=0,
        folder=tmp_path,
    )
    with pytest.raises(ValueError, match="has no chat template"):
        await table.run()
    assert not able.played and not [*tmp_path.iterdir()]
    table.methods = {"able": table.methods["able"]}
    await table.run()
    assert len(able.played) == 10
