"""Log-prob and entropy of each token, and where its text is."""

from __future__ import annotations

import copy
import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import make_tokenizer
from tests.helpers.training import fit, make_questions, make_training
from tests.helpers.words import make_word_model
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.callbacks.transcripts import TranscriptWriter
from zerosearch.generation.stops import decode
from zerosearch.policy.logprobs import token_logprobs
from zerosearch.training.step_record import StepRecord
from zerosearch.training.token_values import characters_of_tokens

TEXT = "<search>né 終わり 😀\u202e a\u0301</search>"


def train(
    folder: Path, token_values: int | None, *, lr: float = 0.01, **fields: Any
) -> tuple[StepRecord, list[Any]]:
    """One policy step of three groups of four; its record, and the rows of its transcripts."""
    settings = {"group_size": 4, "mini_batches": 2, "inner_epochs": 2}
    module = make_training(
        make_word_model(ask=0.5),
        algorithm=Algorithm(**settings, **fields),
        optimizer=partial(torch.optim.Adam, lr=lr),
        tokens_per_micro_batch=40,
    )
    [record] = fit(module, make_questions(3), TranscriptWriter(folder, token_values=token_values))
    file = folder / "train" / "step_000000.jsonl"
    return record, [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("tail", [[], [256]], ids=["", "eos"])
def test_characters_of_tokens_add_up_to_the_text(tail: list[int]) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(TEXT, add_special_tokens=False)

    def text_of(some: list[int]) -> str:
        return decode(tokenizer, [each for each in some if each != 256])

    found = characters_of_tokens(ids + tail, TEXT, text_of)
    assert found is not None and len(found) == len(ids + tail) > sum(found) == len(TEXT)
    expected = [*itertools.accumulate(len(each.encode()) for each in TEXT)]
    assert [n + 1 for n, length in enumerate(found) if length] == expected
    assert characters_of_tokens(ids, TEXT + "!", text_of) is None
    assert characters_of_tokens([], "", text_of) is None


def test_half_a_character_at_the_end_and_spaces_that_depend_on_what_is_before() -> None:
    tokenizer = make_tokenizer()
    ids: Any = [tokenizer.convert_tokens_to_ids(each) for each in ("a", "Ã")]
    assert decode(tokenizer, ids) == "a\ufffd"
    assert characters_of_tokens(ids, "a\ufffd", partial(decode, tokenizer)) == [1, 1]
    words = {1: "no", 2: "space", 3: "in", 4: "front"}
    spaced = characters_of_tokens(
        [1, 2, 3, 4], "no space in front", lambda some: " ".join(words[each] for each in some)
    )
    assert spaced == [2, 6, 3, 6]


def test_a_step_writes_the_values_of_the_policy_that_sampled(tmp_path: Path) -> None:
    before = copy.deepcopy(make_word_model(ask=0.5))
    record, rows = train(tmp_path, None, lr=1e-6)
    assert len(rows) == 12
    for trajectory, row in zip(record.trajectories, rows, strict=True):
        ids = torch.tensor([trajectory.prompt_ids + trajectory.response_ids])
        select = torch.tensor([[False] * len(trajectory.prompt_ids) + trajectory.sampled])
        stats = token_logprobs(before, ids, torch.ones_like(ids), select)
        written = {
            name: [each for turn in row["turns"] for each in turn["tokens"][name]]
            for name in ("logprobs", "entropies")
        }
        assert written["logprobs"] == pytest.approx(stats.logprobs[select].tolist(), abs=2e-3)
        assert written["entropies"] == pytest.approx(stats.entropy[select].tolist(), abs=2e-3)
        for turn in row["turns"]:
            assert sum(turn["tokens"]["characters"]) == len(turn["text"])


def test_of_the_first_alone_and_never_at_a_price(tmp_path: Path) -> None:
    """The metrics of a step are the same bit for bit, whatever is kept of it."""
    metrics = []
    for kept, count in ((0, 0), (5, 5)):
        record, rows = train(tmp_path / str(kept), kept, kl_coefficient=0.1)
        with_values = ["tokens" in row["turns"][0] for row in rows]
        assert with_values == [True] * count + [False] * (12 - count)
        assert len(record.entropies) == count
        metrics.append(
            {
                name: value
                for name, value in record.metrics.items()
                if not name.startswith(("time/", "throughput/", "memory/"))
            }
        )
    assert metrics[0] == metrics[1] and math.isfinite(metrics[0]["loss/entropy"])
