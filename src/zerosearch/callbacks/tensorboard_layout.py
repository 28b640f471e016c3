"""The headline charts of TensorBoard's tab Custom Scalars."""

# pyright: reportAttributeAccessIssue=false
# (protobuf makes the names of its messages when it is imported)

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import metadata
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)

Charts = dict[str, tuple[str, ...]]  # title -> metrics

_COST = {
    "tokens per second": ("throughput/tokens_per_s", "throughput/sampled_tokens_per_s"),
    "seconds of a step, by stage": ("time/wait_s", "time/sync_s", "time/train_s"),
}
_F1: Charts = {"F1 of validation questions, by engine": ()}  # whose names a run knows
POLICY: dict[str, Charts] = {
    "Training: what is learned": {
        "reward, and the share of noise": ("reward/total", "curriculum/noise_probability"),
        "searches and turns of an episode": ("rollout/searches", "rollout/turns"),
        **_F1,
    },
    "Training: health and speed": {
        "entropy": ("loss/entropy",),
        "KL to the reference policy": ("loss/kl",),
        "log-prob gap of sampler and trainer": ("rollout/logprob_gap",),
        "health: shares that should stay low": (
            "advantage/zero_groups",
            "rollout/truncated",
            "rollout/repetition",
            "rollout/broken_tags",
            "search/failed",
        ),
        **_COST,
    },
}
TUNING: dict[str, Charts] = {
    "Tuning": {
        "loss of training and of validation examples": ("loss/reply", "loss/turns", "val/loss"),
        "share of tokens foretold, validation examples": ("val/token_accuracy",),
        "gradient norm": ("optimizer/gradient_norm",),
        "learning rate": ("optimizer/learning_rate",),
        **_COST,
    }
}
_METRICS = {
    metric for charts in (POLICY | TUNING).values() for tags in charts.values() for metric in tags
}
_OF_ENGINE = re.compile(r"val/[^/]+/f1(_low|_high)?")


def in_headline(metric: str) -> bool:
    """Whether one of the charts may show this metric."""
    return metric in _METRICS or _OF_ENGINE.fullmatch(metric) is not None


def layout(engines: Iterable[str], *, tuned: bool = False) -> Summary:
    """The charts of a run, as TensorBoard reads them.

    Charts of several runs are one where they are equal, so that a chart has metrics which not every
    run has.

    Args:
        engines: that validation questions are answered with.
        tuned: the run is one of `zerosearch tune`.
    """
    series = [_interval(engine) for engine in engines]
    categories = TUNING if tuned else POLICY
    if tuned and series:  # of a policy
        categories = {title: {**charts, **_F1} for title, charts in TUNING.items()}
    content = Layout(
        category=[
            Category(title=title, chart=[_chart(*each, series) for each in charts.items()])
            for title, charts in categories.items()
        ]
    ).SerializeToString()
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
    return Summary(
        value=[
            Summary.Value(
                tag=metadata.CONFIG_SUMMARY_TAG,
                tensor=TensorProto(
                    dtype="DT_STRING", string_val=[content], tensor_shape=TensorShapeProto()
                ),
                metadata=SummaryMetadata(plugin_data=plugin),
            )
        ]
    )


def _chart(
    title: str, metrics: Sequence[str], series: Sequence[MarginChartContent.Series]
) -> Chart:
    if not metrics:
        return Chart(title=title, margin=MarginChartContent(series=series))
    patterns = [f"{re.escape(metric)}$" for metric in metrics]
    return Chart(title=title, multiline=MultilineChartContent(tag=patterns))


def _interval(engine: str) -> MarginChartContent.Series:
    f1 = f"val/{engine}/f1"
    return MarginChartContent.Series(value=f1, lower=f"{f1}_low", upper=f"{f1}_high")
