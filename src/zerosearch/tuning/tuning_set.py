"""Examples a simulator is tuned on: from rows made here, or from a data set that others published.

Rows made here hold what was searched and found; their prompts are rendered from a template. Rows of
others hold prompts; their template is derived from these. Either way the template goes into the
tuned simulator's folder, so that training and serving cannot disagree on the prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zerosearch.core.controls import disarm
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, Share
from zerosearch.core.seeding import derive_random
from zerosearch.data.json_text import check_writable
from zerosearch.data.readers import hub_file, local_files
from zerosearch.simulator.prompt import SimulatorPrompt, read_template
from zerosearch.simulator.replies import parse_reply
from zerosearch.tuning.row_reader import TuningRow, log_disarmed, read_rows, without_controls
from zerosearch.tuning.template.inference import derive_template
from zerosearch.tuning.template.quality import split_by_quality
from zerosearch.types import SearchRequest

MAX_UNUSABLE = 0.02  # share of published rows without a reply of documents that is put up with
_MANY = 1000  # more documents than any reply holds

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class TuningExample:
    """One prompt and what is to be written to it."""

    messages: tuple[dict[str, str], ...]
    reply: str
    noisy: bool | None  # None: not known
    documents: int  # that the reply holds
    golden_answers: tuple[str, ...]  # empty: not known
    group: str  # examples of one group are all for training or all for validation


@dataclass(kw_only=True, slots=True, frozen=True)
class TuningSet:
    """What a simulator is tuned on, and the template its prompts come from."""

    train: list[TuningExample]
    validation: list[TuningExample]
    template: str  # text of the jinja2 file


@dataclass(kw_only=True, slots=True, frozen=True)
class TuningFiles:
    """Where examples come from.

    Args:
        train: .jsonl, .json or .parquet file, or hub name: rows made by
            `zerosearch judge`, or a published set (alpaca or chat).
        validation: the same of held-out rows; None takes `validation_share` of the training rows,
            whole questions at a time.
        prompt_template: of rows made here, see `SimulatorPrompt`; of a published set, where its
            template cannot be derived from its rows.
        words_per_document: that the prompts of rows made here ask for.
        validation_share: share of groups that are held out where `validation` is None.
        limit: use this many training examples, None: all.
        prompt_key, reply_key, joiner: of a published set, see `read_rows`.
    """

    train: str
    validation: str | None = None
    prompt_template: str | None = None
    words_per_document: Count = 30
    validation_share: Share = 0.05
    limit: Count | None = None
    prompt_key: str | None = None
    reply_key: str | None = None
    joiner: str = "\n"

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise InputError(
                f"data.files.validation_share={self.validation_share}: give a share between 0 and 1"
            )
        if self.limit is not None and self.limit < 1:
            raise InputError(f"data.files.limit={self.limit}: give 1 or more, or null for all")

    def load(self) -> TuningSet:
        """Read, render or derive, and split.

        Raises:
            InputError: a file or row cannot be read, no template is given or found, or one side of
                the split is empty; says which and the remedy.
        """
        own = "documents" in _first_row(self.train)
        sets = [path for path in (self.train, self.validation) if path is not None]
        parts, template = self._own(sets) if own else self._published(sets)
        if self.validation is None:
            held_out = _held_out(parts[0], self.validation_share)
            parts = [
                [example for example in parts[0] if example.group not in held_out],
                [example for example in parts[0] if example.group in held_out],
            ]
        train, validation = parts
        if not train or not validation:
            raise InputError(
                f"data.files.train={self.train}: {len(train)} examples for training and "
                f"{len(validation)} for validation; give more rows, or data.files.validation"
            )
        return TuningSet(train=train[: self.limit], validation=validation, template=template)

    def _own(self, paths: Sequence[str]) -> tuple[list[list[TuningExample]], str]:
        prompt = SimulatorPrompt(self.prompt_template or "tuned", self.words_per_document)
        parts = []
        for path in paths:
            rows = [(row, place) for file in _files(path) for place, row in file]
            part = [_own_example(row, place, prompt) for row, place in rows]
            harmless = [replace(each, reply=disarm(each.reply)) for each in part]
            changed = sum(a.reply != b.reply for a, b in zip(part, harmless, strict=True))
            log_disarmed(path, changed, len(part))
            parts.append(harmless)
        return parts, prompt.fixed_text()

    def _published(self, paths: Sequence[str]) -> tuple[list[list[TuningExample]], str]:
        read = [
            read_rows(
                path, prompt_key=self.prompt_key, joiner=self.joiner, reply_key=self.reply_key
            )
            for path in paths
        ]
        rows = [row for part in read for row in part]
        if self.prompt_template is None:
            derived = derive_template(rows)
            if derived.misfits:
                raise InputError(
                    f"{len(derived.misfits)} of {derived.rows} rows do not fit the template "
                    "derived from all: derive it with `zerosearch template`, "
                    "look at it, and give data.files.prompt_template=FILE. The first misfit:\n"
                    f"{derived.misfits[0]}"
                )
            template = derived.text
        else:
            template = read_template(self.prompt_template)
            log.warning(
                "data.files.prompt_template=%s goes into the export as it is: whether the rows "
                "were made with it is not checked",
                self.prompt_template,
            )
        read = [without_controls(path, p, template) for path, p in zip(paths, read, strict=True)]
        noisy = iter(split_by_quality([row.text for row in rows], None))
        parts = [[_published_example(row, next(noisy)) for row in part] for part in read]
        usable = [[example for example in part if example is not None] for part in parts]
        lost = len(rows) - sum(map(len, usable))
        if lost > MAX_UNUSABLE * len(rows):
            raise InputError(
                f"{lost} of {len(rows)} rows of {self.train} have no reply with lines 'Doc 1: ...'"
                ": name the field of the reply with data.files.reply_key"
            )
        if lost:
            log.warning("%d of %d rows have no usable reply and are left out", lost, len(rows))
        return usable, template


def write_reply(texts: Sequence[str]) -> str:
    """Documents as a simulator writes them: lines `Doc 1: ...` to `Doc k: ...`."""
    return "\n".join(
        f"Doc {number}: {' '.join(text.split())}" for number, text in enumerate(texts, start=1)
    )


def _own_example(row: Mapping[str, Any], place: str, prompt: SimulatorPrompt) -> TuningExample:
    try:
        texts = [document["text"] for document in row["documents"]]
        answers = row["golden_answers"]
        if not texts or not all(isinstance(text, str) for text in (*texts, *answers)):
            raise InputError("documents and golden_answers must be lists of texts")
        if isinstance(answers, str):
            raise InputError(f"golden_answers is {answers!r:.60}; it must be a list of texts")
        check_writable([row["question"], row["query"], answers, texts], "it")
        request = SearchRequest(
            query=row["query"],
            question=row["question"],
            golden_answers=tuple(answers),
            top_k=len(texts),
        )
        noisy = {"useful": False, "noisy": True}[row["quality"]]
        messages = tuple(prompt.messages(request, noisy=noisy))
    except (LookupError, TypeError, InputError) as error:
        raise InputError(
            f"{place}: not a row of `zerosearch judge` ({type(error).__name__}: {error})"
            "; make the rows again"
        ) from error
    return TuningExample(
        messages=messages,
        reply=write_reply(texts),
        noisy=noisy,
        documents=len(texts),
        golden_answers=request.golden_answers,
        group=request.question,
    )


def _published_example(row: TuningRow, noisy: bool | None) -> TuningExample | None:
    documents = len(parse_reply(row.reply, _MANY).documents)
    if not documents:
        return None
    answers = row.fields.get("golden_answers", ())
    return TuningExample(
        messages=tuple(row.messages),
        reply=row.reply.strip(),
        noisy=noisy,
        documents=documents,
        golden_answers=(answers,) if isinstance(answers, str) else tuple(answers),
        group=str(row.fields.get("question") or row.prompt),
    )


def _held_out(examples: Sequence[TuningExample], share: float) -> set[str]:
    groups = sorted({example.group for example in examples})
    derive_random("tuning validation", len(groups)).shuffle(groups)
    return set(groups[: max(1, round(share * len(groups)))])


def _first_row(path: str) -> Mapping[str, Any]:
    for file in local_files(path) or [hub_file(path, None, "train", streaming=False)]:
        for _, _, row in file.read_all():
            return row
    raise InputError(f"{path} holds no rows; check the file")


def _files(path: str) -> list[Any]:
    files = local_files(path) or [hub_file(path, None, "train", streaming=False)]
    return [((place, row) for _, place, row in file.read_all()) for file in files]
