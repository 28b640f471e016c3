"""Several sources of questions together: what they may be, their files, their weights."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.data.sources import QASource, QuestionSource
from zerosearch.types import Question

Sources = Mapping[str, QuestionSource] | Sequence[QuestionSource]


def checked_sources(sources: Sources, name: str) -> list[QuestionSource]:
    """Sources as a list, each with a label of its own and a positive weight (or None).

    Raises:
        InputError: naming the source and what is wrong with it.
    """
    listed = list(sources.values()) if isinstance(sources, Mapping) else list(sources)
    labels: set[str] = set()
    for source in listed:
        if isinstance(source, dict) and "_target_" not in source:
            raise InputError(
                f"data.{name} has settings of a source that data= does not have ({dict(source)}): "
                "choose the data that they belong to, such as data=files for files of your own"
            )
        if not isinstance(source, QuestionSource):
            raise InputError(
                f"data.{name} holds {source!r}, which has no label, weight and load(); use "
                f"zerosearch.data.sources.QASource or a class like it (and if it is one, its YAML "
                f"needs `_convert_: all` beside the `_target_` of QADataModule)"
            )
        if source.label in labels:
            raise InputError(
                f"data.{name} has two sources with label {source.label!r}; set label= of one"
            )
        if source.weight is not None and not 0 < source.weight < float("inf"):
            raise InputError(
                f"data.{name}: weight of {source.label!r} is {source.weight}; it must be positive "
                f"(leave the source out to disable it)"
            )
        labels.add(source.label)
    return listed


def told_apart(
    sources: Sequence[QuestionSource], others: Sequence[QuestionSource]
) -> list[QuestionSource]:
    """Sources of which none has the label of another one with other questions.

    Questions are identified by label and position, and noise is drawn by that: the questions of
    `a/qa.jsonl` and `b/qa.jsonl`, or of two splits of a hub data set, need labels that differ.

    Args:
        sources: of one list, with labels that differ.
        others: of the lists before.
    """
    taken = {each.label: _place(each) for each in others if isinstance(each, QASource)}
    return [
        replace(source, label=source.path if os.path.exists(source.path) else _hub_name(source))
        if isinstance(source, QASource)
        and taken.get(source.label, _place(source)) != _place(source)
        else source
        for source in sources
    ]


def _hub_name(source: QASource) -> str:
    return "/".join(part for part in _place(source) if part)


def _place(source: QASource) -> tuple[str, str | None, str]:
    return source.path, source.name, source.split


def file_sources(files: Sequence[str]) -> list[QuestionSource]:
    """One source per file, weighted by size, labelled by file name (or path where names collide).

    Raises:
        InputError: not a list, an empty one, or one with a file twice.
    """
    if isinstance(files, str) or not files:
        raise InputError(f"data.files={files!r} must be a list of files: data.files=[my.parquet]")
    places = [(os.path.realpath(file), path) for path in files for file in _matches(path)]
    count = Counter(place for place, _ in places)
    if twice := [path for place, path in places if count[place] > 1]:
        files_of = "a file of " if glob.has_magic(twice[-1]) else ""
        raise InputError(
            f"data.files names {files_of}{twice[-1]!r} twice: name it once (weights in data.train "
            "have some questions asked more often)"
        )
    names = [os.path.basename(path) for path in files]
    return [
        QASource(path=path, weight=None, label=name if names.count(name) == 1 else path)
        for path, name in zip(files, names, strict=True)
    ]


def _matches(path: str) -> list[str]:
    """The files that a path or a pattern names, as `local_files` reads it."""
    expanded = os.path.expanduser(path)
    is_pattern = glob.has_magic(expanded) and not os.path.exists(expanded)
    return glob.glob(expanded, recursive=True) if is_pattern else [expanded]


def check_unique(questions: Sequence[Question]) -> None:
    """Raise InputError if two questions share a uid, on which noise draws and logs rely."""
    seen: set[str] = set()
    for question in questions:
        if question.uid in seen:
            raise InputError(
                f"two questions of source {question.source!r} have uid {question.uid!r}; the "
                f"source must make uids unique, such as label:position"
            )
        seen.add(question.uid)


def weights_of(sources: Sequence[QuestionSource], loaded: Mapping[str, Any]) -> list[float]:
    """Shares of sources in the training questions, by their weights or, where none has one, sizes.

    Args:
        sources: those of `loaded`.
        loaded: questions or stream of each source, by its label.

    Raises:
        InputError: weights are missing, or a size is not known.
    """
    given = {source.label: source.weight for source in sources}
    if all(weight is None for weight in given.values()):
        streamed = [label for label in given if not isinstance(loaded[label], Sequence)]
        if streamed and len(given) > 1:
            raise InputError(
                f"weight of {streamed[0]!r} is null, but the size of a stream is not known; give "
                f"every source a weight"
            )
        return [1.0 if streamed else float(len(loaded[label])) for label in given]
    missing = [label for label, weight in given.items() if weight is None]
    if missing:
        raise InputError(
            f"weight of {missing[0]!r} is null (by size) while other sources have numbers; give "
            f"all sources a weight, or none"
        )
    return [float(weight) for weight in given.values() if weight is not None]
