"""What TensorBoard has beside curves: charts, tables, histograms, a row of each run, a link."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Layout,  # pyright: ignore[reportAttributeAccessIssue]  # made when it is imported
)
from tensorboard.plugins.hparams import metadata

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.callbacks.latest import link_charts
from zerosearch.callbacks.tensorboard_columns import columns
from zerosearch.callbacks.tensorboard_layout import POLICY, TUNING, in_headline, layout
from zerosearch.callbacks.tensorboard_logger import MOST, CurveLogger, is_curve
from zerosearch.callbacks.tensorboard_pages import HISTOGRAMS, TensorBoardPages, results_table
from zerosearch.core.outcome import columns_of, name_of

CHARTS = [title for charts in POLICY.values() for title in charts]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    """Of four policy steps with evaluations around them."""
    folder, module = tmp_path_factory.mktemp("board"), PolicyStub(4)
    module.evaluations = {"bm25": None, "scripted": None}  # type: ignore[assignment]
    pages, logger = TensorBoardPages(), CurveLogger(folder)
    trainer = make_trainer(4, callbacks=[pages], val_every=2, logger=logger)
    module.phase = "start"
    trainer.test(module, verbose=False)
    module.start_metrics = {"start/bm25/f1": 0.25, "start/scripted/f1": 0.5}
    module.phase = "val"
    trainer.fit(module)
    module.phase = "test"
    trainer.test(module, verbose=False)
    logger.save()
    return EventAccumulator(str(folder), size_guidance={"histograms": 0}).Reload()


def texts(board: EventAccumulator, tag: str) -> list[str]:
    events = board.Tensors(f"{tag}/text_summary")
    return [event.tensor_proto.string_val[0].decode() for event in events]


def test_the_headline_charts_are_laid_out(board: EventAccumulator) -> None:
    content = board.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    categories = Layout.FromString(content).category
    charts = {chart.title: chart for category in categories for chart in category.chart}
    assert [*charts] == CHARTS and 8 <= len(charts) <= 9
    (f1,) = [chart for chart in charts.values() if chart.HasField("margin")]
    assert [each.value for each in f1.margin.series] == ["val/bm25/f1", "val/scripted/f1"]
    assert f1.margin.series[0].lower == "val/bm25/f1_low"
    reward = charts["reward, and the share of noise"].multiline.tag
    assert [*reward] == ["reward/total$", r"curriculum/noise_probability$"]


def test_every_metric_of_a_chart_is_a_curve_and_keeps_its_place() -> None:
    every = {m for charts in (POLICY | TUNING).values() for tags in charts.values() for m in tags}
    assert all(is_curve(metric) and in_headline(metric) for metric in every)
    assert len(every) < 30 < MOST, "room is kept for so many"
    assert in_headline("val/bm25/f1_high") and not in_headline("val/bm25/em")


def test_a_tuning_has_charts_of_its_own() -> None:
    for engines in ((), ("bm25",)):  # of a policy, too
        (value,) = layout(engines, tuned=True).value
        (category,) = Layout.FromString(value.tensor.string_val[0]).category
        assert category.title == "Tuning"
        assert category.chart[0].multiline.tag[0] == "loss/reply$"
        margins = [chart.margin.series for chart in category.chart if chart.HasField("margin")]
        assert [each.value for series in margins for each in series] == [
            f"val/{engine}/f1" for engine in engines
        ]


def test_results_are_a_table_before_and_after_training(board: EventAccumulator) -> None:
    first, last = texts(board, "results/bm25")
    assert "| before training | after training |" in first
    assert "0.25" not in first and "| f1 | 0.25 | " in last
    assert "<td>0.25</td>" in markdown_to_safe_html(last)
    assert not [name for name in board.Tags()["scalars"] if name.startswith(("start/", "test/"))]


def test_a_table_has_intervals_and_no_zeros() -> None:
    metrics = {"f1": 0.5, "f1_low": 0.25, "f1_high": 0.75, "failed": 0.0, "count": 512.0}
    table = results_table(
        "x", {f"{p}/x/{k}": v for p in ("start", "test") for k, v in metrics.items()}
    )
    rows = table.splitlines()[2:]
    assert rows == ["| f1 | 0.5 (0.250 to 0.750) | 0.5 (0.250 to 0.750) |", "| count | 512 | 512 |"]
    tuned = results_table("", {"start/loss": 2.0, "test/loss": 1.0, "test/other": 3.0})
    assert tuned.splitlines()[2:] == ["| loss | 2 | 1 |", "| other |  | 3 |"]
    never = results_table("x", {"start/x/f1": 0.0, "test/x/f1": 0.0, "test/x/failed": 0.0})
    assert never.splitlines()[2:] == ["| f1 | 0 | 0 |"], "who learns nothing sees it"
    assert "<script>" not in results_table("<script>", {"test/<script>/f1": 1.0})


def test_turns_lengths_and_rewards_are_histograms(board: EventAccumulator) -> None:
    assert {*board.Tags()["histograms"]} == {*HISTOGRAMS}
    rewards = board.Histograms("episodes/reward")
    assert [event.step for event in rewards] == [0, 1, 2, 3]
    assert rewards[0].histogram_value.num == 2 and rewards[0].histogram_value.sum == 1.0
    assert board.Histograms("episodes/turns")[0].histogram_value.sum == 4.0


def test_a_row_of_a_run_holds_what_differs_and_what_came_out() -> None:
    facts = {
        "choices": {"experiment": "quickstart", "compat": None},
        "seed": 1,
        "differs": ["optimizer.lr=1e-5", "seed=1", "algorithm=rloo", "~logger", "compat=null"],
        **{"start/f1": 0.0123456, "test/f1": 0.9, "test/f1_low": 0.8, "test/f1_high": 0.95},
        "reward/f1": 0.3,
    }
    values, first = columns_of(facts)
    assert values == {
        "experiment": "quickstart",
        "seed": 1.0,
        "algorithm": "rloo",
        "~logger": "removed",
        "compat": "null",
        "optimizer.lr": 1e-5,
        "start/f1": 0.0123,
        "test/f1": 0.9,
        "test/f1_low": 0.8,
        "test/f1_high": 0.95,
    }
    assert first == ["algorithm", "~logger", "compat", "start/f1", "test/f1"]
    assert list(values)[2:6] == ["algorithm", "~logger", "compat", "optimizer.lr"]
    named = "quickstart seed=1 algorithm=rloo ~logger compat=null optimizer.lr=1e-5"
    assert name_of(facts) == named, "what is cut short is cut at its end"
    assert columns_of({"choices": {}, "seed": None, "differs": []}) == ({}, [])


def test_a_row_has_at_most_fifteen_columns() -> None:
    differs = [f"key_{n}={n}" for n in range(20)]
    ends = {f"{p}/f1{e}": 0.5 for p in ("start", "test") for e in ("", "_low", "_high")}
    values, first = columns_of(
        {"choices": {"experiment": "e"}, "seed": 0, "differs": differs, **ends}
    )
    assert values["more"] == " ".join(differs[5:]) and values["key_4"] == 4.0
    experiment, start = columns(values, ["a", "b", "c"], first)
    found = metadata.parse_experiment_plugin_data(experiment.value[0].metadata.plugin_data.content)
    assert len(found.hparam_infos) + len(found.metric_infos) == 15
    assert [info.name for info in found.hparam_infos if info.differs] == first
    content = start.value[0].metadata.plugin_data.content
    assert {*metadata.parse_session_start_info_plugin_data(content).hparams} == {*values}


def test_each_run_has_one_link_by_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(strftime=lambda form: "11-28 19.10")
    monkeypatch.setattr("zerosearch.callbacks.latest.time", clock)
    charts, runs = tmp_path / "logs" / "tensorboard" / "train", [tmp_path / n for n in ("a", "b")]
    for run in [*runs, runs[0]]:  # which goes on
        link_charts(run / "tensorboard", charts, "quickstart algorithm/loss=cispo")
    names = sorted(link.name for link in charts.iterdir())
    assert {link.resolve().parent.name for link in charts.iterdir()} == {"a", "b"}
    assert names == [f"quickstart algorithm_loss=cispo, 11-28 19.10{n}" for n in ("", " (2)")]
    shutil.rmtree(runs[0])
    link_charts(tmp_path / "c", charts, "x" * 300 + "\x1b")
    assert {link.resolve().name for link in charts.iterdir()} == {"tensorboard", "c"}
