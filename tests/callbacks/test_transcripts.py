from __future__ import annotations

import json
import re
from html import unescape

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from tests.helpers.policy_stub import PolicyStub, make_record, make_trainer, make_trajectory
from zerosearch.callbacks.transcript_markdown import LONGEST, transcript_markdown
from zerosearch.callbacks.transcript_text import transcript_json
from zerosearch.callbacks.transcripts import TranscriptWriter
from zerosearch.core.shown import shown as written
from zerosearch.types import Question


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of four policy steps with a validation every two, and evaluations around them."""
    folder = tmp_path_factory.mktemp("run")
    module = PolicyStub(4)
    trainer = make_trainer(
        4,
        callbacks=[TranscriptWriter(folder / "transcripts", every_n_steps=2)],
        val_every=2,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
    )
    module.phase = "start"
    trainer.validate(module, verbose=False)
    module.phase = "val"
    trainer.fit(module)
    module.phase = "test"
    trainer.test(module, verbose=False)
    return folder


def test_one_file_per_step_and_evaluation(run):
    files = sorted(str(p.relative_to(run / "transcripts")) for p in run.rglob("*.jsonl"))
    assert files == [
        "start/bm25/step_000000.jsonl",
        "start/scripted/step_000000.jsonl",
        "test/bm25/step_000004.jsonl",
        "test/scripted/step_000004.jsonl",
        "train/step_000000.jsonl",
        "train/step_000002.jsonl",
        "val/bm25/step_000002.jsonl",
        "val/bm25/step_000004.jsonl",
        "val/scripted/step_000002.jsonl",
        "val/scripted/step_000004.jsonl",
    ]


def test_a_line_holds_the_whole_episode(run):
    first, second = lines(run / "transcripts" / "train" / "step_000002.jsonl")
    assert first == {
        "step": 2,
        "phase": "train",
        "uid": "geo:1",
        "source": "unknown",
        "question": "Capital of Italy?",
        "golden_answers": ["Rome"],
        "group": 4,
        "sibling": 0,
        "answer": "Rome",
        "stop_reason": "answer",
        "error": None,
        "reward": 1.0,
        "f1": 1.0,
        "em": 1.0,
        "cover_em": 1.0,
        "advantage": 0.5,
        "noise_probability": 0.0,
        "turns": [
            {
                "text": "<think>where</think><search>capital of Italy</search>",
                "action": "search",
                "query": "capital of Italy",
                "search": {
                    "documents": [{"title": "Italy", "text": "Its capital is Rome."}],
                    "requested": 2,
                    "noisy": False,
                    "latency_s": 0.25,
                    "cached": False,
                },
                "observation": (
                    "<information>Doc 1(Title: Italy) Its capital is Rome.</information>"
                ),
                "sampled_tokens": 5,
                "inserted_tokens": 7,
            },
            {
                "text": "<answer>Rome</answer>",
                "action": "answer",
                "query": None,
                "search": None,
                "observation": None,
                "sampled_tokens": 3,
                "inserted_tokens": 0,
            },
        ],
    }
    assert (second["answer"], second["reward"], second["advantage"]) == ("Paris", 0.0, 1.5)


def test_evaluation_has_no_advantage(run):
    (row,) = lines(run / "transcripts" / "val" / "bm25" / "step_000004.jsonl")
    assert (row["advantage"], row["reward"], row["phase"]) == (None, 1.0, "val/bm25")


def test_failed_search_has_an_error_and_no_reward():
    record = make_record(0, "train", [make_trajectory(error="search engine x: down")])
    row = transcript_json(record, 0)
    assert (row["error"], row["reward"], row["answer"]) == ("search engine x: down", None, None)
    assert (row["turns"][0]["query"], row["turns"][0]["search"]) == ("capital of Italy", None)
    html = unescape(markdown_to_safe_html(transcript_markdown(record, 0)))
    assert "<strong>invalid</strong> search engine x: down" in html


def test_max_per_step_keeps_the_first(tmp_path):
    callback = TranscriptWriter(tmp_path, max_per_step=1)
    make_trainer(1, callbacks=[callback], val_every=None).fit(PolicyStub(1))
    assert [row["sibling"] for row in lines(tmp_path / "train" / "step_000000.jsonl")] == [0]


def test_each_rank_writes_its_own_file(tmp_path):
    trainer = make_trainer(1, callbacks=[])
    trainer.strategy.global_rank = 1  # type: ignore[attr-defined]
    trainer.strategy.world_size = 2  # type: ignore[attr-defined]
    record = make_record(12, "train", [make_trajectory("ünïcode \ud800")])
    TranscriptWriter(tmp_path).on_record(trainer, PolicyStub(), record)
    assert lines(tmp_path / "train" / "step_000012.rank1.jsonl")[0]["answer"] == "ünïcode ?"


def test_tensorboard_shows_tags_literally_at_each_evaluation(run):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    shown = events.Tensors("transcripts/val/bm25/text_summary")
    assert [event.step for event in shown] == [2, 4]
    html = unescape(markdown_to_safe_html(shown[1].tensor_proto.string_val[0]))
    assert "<h4>Capital of Italy?</h4>" in html
    assert "<strong><search></strong>capital of Italy<strong></search></strong>" in html
    assert "<strong>reward</strong> 1.000 (F1 1.000, EM 1)<br>" in html
    assert "<strong>turn 1: search, 1 of 2 useful documents</strong>" in html
    assert html.count("<blockquote>") == 3, "two turns, and documents within the first"
    assert "transcripts/train/text_summary" not in events.Tags()["tensors"]


HOSTILE = [
    "```\n# Rome\n```",
    "~~~\n<script>alert(1)</script>",
    "</blockquote><img src=x onerror=alert(1)> ![](http://evil/x.png) <http://evil>",
    "[x](javascript:alert(1)) [y]: http://evil\n[y] [z][y] www.evil.com",
    "a | b\n--- | ---\n| c | d |",
    "# head\n1. one\n- two\n    code\n\tcode\n***\n===\n> quote",
    "*a* **b** _c_ `d` &amp; &lt; &#60;script&#62; \\*e\\*",
    "\x1b]0;owned\x07\u202eevil\x00",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_others_wrote_is_text_in_markdown(text):
    trajectory = make_trajectory(text, golden=text)
    trajectory.question = Question(uid="q", text=text, golden_answers=(text,))
    trajectory.turns[0].observation = text
    html = markdown_to_safe_html(transcript_markdown(make_record(0, "val/x", [trajectory]), 0))
    tags = set(re.findall(r"<(\w+)", html))
    assert tags <= {"h4", "p", "strong", "br", "blockquote"}, html
    said = unescape(re.sub(r"<[^>]+>", "", html)).replace("\xa0", " ")
    for line in written(text, lines=True).expandtabs(4).split("\n"):
        assert line.strip() in said, line


def test_a_long_text_is_cut():
    trajectory = make_trajectory()
    trajectory.turns[0].observation = "x" * 1_000_000
    text = transcript_markdown(make_record(0, "val/x", [trajectory]), 0)
    assert len(text) < 3 * LONGEST and f"({1_000_000 - LONGEST} characters more" in unescape(text)


def test_examples_can_be_switched_off(tmp_path):
    trainer = make_trainer(
        1,
        callbacks=[TranscriptWriter(tmp_path, tensorboard_examples=0)],
        val_every=1,
        logger=TensorBoardLogger(tmp_path, name="tensorboard", version=""),
    )
    trainer.fit(PolicyStub(1))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["tensors"] == []


@pytest.mark.parametrize(
    "settings", [{"every_n_steps": 0}, {"max_per_step": 0}, {"tensorboard_examples": -1}]
)
def test_bad_settings_are_named(tmp_path, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}="):
        TranscriptWriter(tmp_path, **settings)
