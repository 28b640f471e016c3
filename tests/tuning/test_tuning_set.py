"""Examples from rows made here and from published ones; every prompt comes from the template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tuning_rows import alpaca, conversations, make_examples, messages, plain_prompt
from zerosearch.simulator.prompt import SimulatorPrompt
from zerosearch.tuning.tuning_set import TuningFiles, write_reply
from zerosearch.types import SearchRequest


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{n}",
            "question": f"Where is place {n // 2}?",
            "golden_answers": ["Peru", "PE"],
            "query": f"country of place {n // 2}",
            "quality": "noisy" if n % 2 else "useful",
            "documents": [{"title": "", "text": f"text\n{k} of {n}"} for k in range(1 + n % 3)],
        }
        for n in range(count)
    ]


def test_prompts_of_own_rows_are_rendered_from_the_template(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", make_rows(40))
    found = TuningFiles(train=path, prompt_template="prompted", words_per_document=17).load()
    every = found.train + found.validation
    assert len(every) == 40
    example = next(each for each in found.train if each.group == "Where is place 3?")
    request = SearchRequest(
        query="country of place 3",
        question="Where is place 3?",
        golden_answers=("Peru", "PE"),
        top_k=example.documents,
    )
    exported = tmp_path / "simulator"
    exported.mkdir()
    (exported / "prompt.j2").write_text(found.template)
    for template, words in (("prompted", 17), (str(exported), 99)):
        prompt = SimulatorPrompt(template, words)
        assert prompt.messages(request, noisy=bool(example.noisy)) == list(example.messages)
    assert example.reply.startswith("Doc 1: text 0 of ")


@pytest.mark.parametrize("template", ["compact", "tuned"])
def test_an_exported_template_gives_the_same_prompts(tmp_path: Path, template: str) -> None:
    path = write(tmp_path / "rows.jsonl", make_rows(40))
    found = TuningFiles(train=path, prompt_template=template, words_per_document=12).load()
    (tmp_path / "prompt.j2").write_text(found.template)
    request = SearchRequest(query="q", question="Q?", golden_answers=(), top_k=2)
    own, shipped = SimulatorPrompt(str(tmp_path), 30), SimulatorPrompt(template, 12)
    for noisy in (False, True):
        assert own.messages(request, noisy=noisy) == shipped.messages(request, noisy=noisy)


def test_whole_questions_are_held_out_and_always_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", make_rows(200))
    found = TuningFiles(train=path, validation_share=0.2).load()
    held_out = {each.group for each in found.validation}
    assert len(held_out) == 20 and len(found.validation) == 40
    assert not held_out & {each.group for each in found.train}
    again = TuningFiles(train=path, validation_share=0.2, limit=10).load()
    assert {each.group for each in again.validation} == held_out and len(again.train) == 10


@pytest.mark.parametrize("form", [alpaca, messages, conversations])
def test_published_rows_bring_their_prompts_and_their_template(tmp_path: Path, form: Any) -> None:
    examples = make_examples(120)
    rows = form(plain_prompt, examples)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    found = TuningFiles(train=str(path), validation_share=0.1).load()
    assert len(found.train) + len(found.validation) == 120 and len(found.validation) >= 10
    prompts = {plain_prompt(each): each for each in examples}
    for each in found.train + found.validation:
        example = prompts[each.messages[-1]["content"]]
        assert each.noisy == example["noisy"] and each.reply == "Doc 1: text"
    (tmp_path / "prompt.j2").write_text(found.template)
    prompt = SimulatorPrompt(str(tmp_path), 30)
    example = examples[1]
    request = SearchRequest(
        query=example["query"],
        question=example["question"],
        golden_answers=tuple(example["answers"]),
        top_k=5,
    )
    rendered = prompt.messages(request, noisy=example["noisy"])
    assert rendered[-1]["content"] == plain_prompt(example)


def test_published_rows_without_usable_replies(tmp_path: Path) -> None:
    rows = alpaca(plain_prompt, make_examples(120))
    for row in rows:
        row["text"] = row.pop("output")
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"120 of 120 rows .* data\.files\.reply_key"):
        TuningFiles(train=path).load()
    assert TuningFiles(train=path, reply_key="text").load().train[0].documents == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quality": "fair"}, "KeyError: 'fair'"),
        ({"query": None}, "line 2"),
        ({"documents": [{"text": None}]}, "line 2: .*documents and golden_answers must be lists"),
        ({"documents": []}, "line 2: .*documents and golden_answers must be lists"),
        ({"golden_answers": "Peru"}, "line 2: .*golden_answers is 'Peru'; it must be a list"),
        ({"question": "Where? \ud83d"}, "line 2: .*half a character"),
        ({"documents": ["text"]}, "line 2: not a row of `zerosearch judge`"),
    ],
)
def test_an_own_row_that_cannot_be_used_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    rows = make_rows(4)
    rows[1] |= changes
    with pytest.raises(ValueError, match=message):
        TuningFiles(train=write(tmp_path / "rows.jsonl", rows)).load()


def test_a_published_row_with_half_a_character_is_named(tmp_path: Path) -> None:
    rows = alpaca(plain_prompt, make_examples(8))
    rows[2]["output"] += " \ud83d"
    with pytest.raises(ValueError, match=r"line 3: the row is .*half a character"):
        TuningFiles(train=write(tmp_path / "rows.jsonl", rows)).load()


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"validation_share": 1.0}, "validation_share=1.0"), ({"limit": 0}, "limit=0: give 1")],
)
def test_settings_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.files\.{message}"):
        TuningFiles(train="rows.jsonl", **fields)


def test_a_reply_is_lines_of_documents() -> None:
    assert write_reply(["one\n two", "three"]) == "Doc 1: one two\nDoc 2: three"
