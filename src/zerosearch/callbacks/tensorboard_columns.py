"""The row of a run in TensorBoard's tab HParams."""

# pyright: reportAttributeAccessIssue=false
# (protobuf makes the names of its messages when it is imported)

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo


def columns(
    values: Mapping[str, float | str | None], metrics: Sequence[str], first: Collection[str]
) -> list[Summary]:
    """What TensorBoard reads: which columns there are, and this run's values.

    It takes the columns of all runs from one of them, whichever it finds first: what every run has
    should be among them.

    Args:
        values: by name of the column; None: the run has no number there, others have.
        metrics: curves whose last values are columns, too.
        first: names of the columns that are shown without being asked for; the tab begins with
            five.
    """
    infos = [
        HParamInfo(
            name=name,
            type=DATA_TYPE_STRING if isinstance(value, str) else DATA_TYPE_FLOAT64,
            differs=name in first,  # by which it sorts
        )
        for name, value in values.items()
    ]
    shown = [MetricInfo(name=MetricName(tag=name)) for name in metrics]
    start = SessionStartInfo()
    for name, value in values.items():
        if isinstance(value, str):
            start.hparams[name].string_value = value
        elif value is not None:
            start.hparams[name].number_value = value
    experiment = Experiment(hparam_infos=infos, metric_infos=shown)
    return [
        _summary(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
        _summary(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
    ]


def _summary(tag: str, data: HParamsPluginData) -> Summary:
    about = metadata.create_summary_metadata(data)
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])
