"""A template is derived from rows and gives every row's prompt back, byte for byte."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.tuning_rows import (
    WANTED,
    Example,
    alpaca,
    conversations,
    make_examples,
    messages,
    plain_prompt,
)
from zerosearch.commands.template import main
from zerosearch.simulator.prompt import SimulatorPrompt
from zerosearch.types import SearchRequest

EXAMPLES = make_examples(80)
TOP_K = {"three": 3, "five": 5}


def derive(
    folder: Path, rows: list[dict[str, Any]], *options: str, name: str = "rows.json"
) -> SimulatorPrompt:
    """Runs the command and loads what it wrote."""
    path, output = folder / name, folder / "template.j2"
    lines = name.endswith("l")
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    main([str(path), "--output", str(output), *options])
    return SimulatorPrompt(str(output), words_per_document=30)


def chat(template: SimulatorPrompt, example: Example) -> list[dict[str, str]]:
    """The messages a search would send."""
    request = SearchRequest(
        query=example["query"],
        question=example["question"],
        golden_answers=tuple(example["answers"]),
        top_k=TOP_K[example["count"]],
    )
    return template.messages(request, noisy=example["noisy"])


def ask(template: SimulatorPrompt, example: Example) -> str:
    """The user message a search would send."""
    return chat(template, example)[-1]["content"]


def reproduces(template: SimulatorPrompt, prompt: Callable[[Example], str]) -> None:
    """Held against the examples themselves, also against new ones, not against what was read."""
    for example in [*EXAMPLES, *make_examples(60, seed=1)]:
        assert ask(template, example) == prompt(example)


# -- forms of data sets ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", [alpaca, messages, conversations])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_every_published_form_of_rows_is_read(
    form: Callable[..., list[dict[str, Any]]], name: str, tmp_path: Path
) -> None:
    template = derive(tmp_path, form(plain_prompt, EXAMPLES), name=name)
    reproduces(template, plain_prompt)


def test_instruction_and_input_are_joined_as_asked(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"Write {WANTED[each['noisy']]} pages for the query.",
            "input": each["query"],
            "output": "Doc 1: text",
        }
        for each in EXAMPLES
    ]

    def prompt(joiner: str) -> Callable[[Example], str]:
        return lambda each: (
            f"Write {WANTED[each['noisy']]} pages for the query.{joiner}{each['query']}"
        )

    reproduces(derive(tmp_path, rows), prompt("\n"))
    reproduces(derive(tmp_path, rows, "--joiner", "\n\n"), prompt("\n\n"))


def test_the_field_of_the_prompt_can_be_named(tmp_path: Path) -> None:
    rows = [{"asked": plain_prompt(each), "reply": "Doc 1: text"} for each in EXAMPLES]
    reproduces(derive(tmp_path, rows, "--prompt-key", "asked"), plain_prompt)
    with pytest.raises(SystemExit, match=r"no prompt in.*'asked', 'reply'.*--prompt-key"):
        derive(tmp_path, rows)


# -- wording --------------------------------------------------------------------------------------


def other_noisy_text(example: Example) -> str:
    """Noisy prompts know neither question nor answer, and have a rule of their own."""
    if not example["noisy"]:
        return plain_prompt(example)
    return (
        "Play a search engine.\nFor the query below write five noisy pages.\n\n"
        "Keep to the topic, but say nothing that helps. No lists, no links.\n"
        f"A page has 30 words or so and is noisy.\n\nQuery: {example['query']}\nNoisy pages:\n"
    )


def quality_at_the_end(example: Example) -> str:
    return f"Search query: {example['query']}\n{WANTED[example['noisy']].title()} result:"


def markup(example: Example) -> str:
    """Constant text that jinja2 would act upon."""
    wanted = WANTED[example["noisy"]]
    return (
        f"{{% raw %}} {{{{ x }}}} {{# no #}}\r\nquality={wanted} form={{{{\n"
        f'{{"query": "{example["query"]}"}}{{'
    )


def counted_in_words(example: Example) -> str:
    return (
        f"Query: {example['query']}\nWrite {example['count']} {WANTED[example['noisy']]} documents "
        f"of 30 words. Question: {example['question']}"
    )


def counted_in_digits(example: Example) -> str:
    return (
        f"Write the {TOP_K[example['count']]} {WANTED[example['noisy']]} documents for the query "
        f"[{example['query']}]"
    )


def query_twice(example: Example) -> str:
    return (
        f"Query: {example['query']}\nWrite {WANTED[example['noisy']]} pages.\n"
        f"Again, this was typed: {example['query']}"
    )


def python_list(example: Example) -> str:
    return (
        f"{WANTED[example['noisy']]} pages; golden answers {example['answers']}; "
        f"search query {example['query']}"
    )


@pytest.mark.parametrize(
    "prompt",
    [
        other_noisy_text,
        quality_at_the_end,
        markup,
        counted_in_words,
        counted_in_digits,
        query_twice,
        python_list,
    ],
)
def test_wordings_are_found_and_reproduced(
    prompt: Callable[[Example], str], tmp_path: Path
) -> None:
    reproduces(derive(tmp_path, alpaca(prompt, EXAMPLES)), prompt)


def test_a_part_about_the_answer_may_be_absent_from_some_rows(tmp_path: Path) -> None:
    def prompt(example: Example) -> str:
        known = f" whose answer is {' | '.join(example['answers'])}" if example["answers"] else ""
        return (
            f'Write {WANTED[example["noisy"]]} pages. Question: "{example["question"]}"{known}.\n'
            f"Query: {example['query']}\n"
        )

    examples = [{**each, "answers": each["answers"][: i % 3]} for i, each in enumerate(EXAMPLES)]
    template = derive(tmp_path, alpaca(prompt, examples))
    for example in [*examples, *make_examples(60, seed=1)]:
        assert ask(template, example) == prompt(example)


def test_rows_without_golden_answers_make_a_template_without_them(tmp_path: Path) -> None:
    def prompt(example: Example) -> str:
        return f"A {WANTED[example['noisy']]} page about the query {example['query']}, please."

    template = derive(tmp_path, alpaca(prompt, EXAMPLES))
    reproduces(template, prompt)
    assert "golden_answers" not in (tmp_path / "template.j2").read_text()


def test_a_question_mark_that_ends_all_questions_is_the_questions_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{**each, "question": each["question"].rstrip("?") + "?"} for each in EXAMPLES]
    template = derive(tmp_path, alpaca(plain_prompt, asked))
    assert "question's own" in " ".join(capsys.readouterr().out.split())
    for example in [*asked, EXAMPLES[0]]:  # the last one's question has no mark
        assert ask(template, example) == plain_prompt(example)


# -- golden answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["<|answer_split|>", " or ", "\n"])
def test_fields_of_the_rows_tell_how_several_answers_are_joined(
    separator: str, tmp_path: Path
) -> None:
    def prompt(example: Example) -> str:
        return (
            f"{WANTED[example['noisy']]}; the answer: {separator.join(example['answers'])};\n"
            f"query: {example['query']}"
        )

    rows = [
        {**row, "golden_answers": example["answers"]}
        for row, example in zip(alpaca(prompt, EXAMPLES), EXAMPLES, strict=True)
    ]
    reproduces(derive(tmp_path, rows), prompt)


def test_fields_of_the_rows_tell_that_the_first_answer_alone_is_shown(tmp_path: Path) -> None:
    def prompt(example: Example) -> str:
        return (
            f"{WANTED[example['noisy']]}; the answer: {example['answers'][0]};\n"
            f"query: {example['query']}"
        )

    rows = [
        {**row, "golden_answers": example["answers"]}
        for row, example in zip(alpaca(prompt, EXAMPLES), EXAMPLES, strict=True)
    ]
    template = derive(tmp_path, rows)
    reproduces(template, prompt)
    assert ask(template, {**EXAMPLES[0], "answers": []})


def test_the_separator_can_be_said(tmp_path: Path) -> None:
    single = [{**each, "answers": each["answers"][:1]} for each in EXAMPLES]
    template = derive(tmp_path, alpaca(plain_prompt, single), "--answer-separator", " | ")
    reproduces(template, plain_prompt)


# -- what cannot be told --------------------------------------------------------------------------


def unlabelled(example: Example) -> str:
    return f"{WANTED[example['noisy']]} pages\n<{example['query']}>\n({example['question']})"


def test_a_slot_that_could_be_anything_is_shown_and_can_be_named(tmp_path: Path) -> None:
    rows = alpaca(unlabelled, EXAMPLES)
    with pytest.raises(SystemExit) as refused:
        derive(tmp_path, rows)
    said = str(refused.value)
    assert "slot 1 could be anything; slot 2 could be anything" in said
    assert "--slot NUMBER=NAME" in said and any(each["query"] in said for each in EXAMPLES)
    assert not (tmp_path / "template.j2").exists()
    template = derive(tmp_path, rows, "--slot", "1=query", "--slot", "2=question")
    reproduces(template, unlabelled)


def test_slots_are_named_by_the_fields_of_the_rows(tmp_path: Path) -> None:
    rows = [
        {**row, "query": example["query"], "problem": example["question"]}
        for row, example in zip(alpaca(unlabelled, EXAMPLES), EXAMPLES, strict=True)
    ]
    reproduces(derive(tmp_path, rows), unlabelled)


def test_one_name_for_two_different_slots_is_refused(tmp_path: Path) -> None:
    def prompt(example: Example) -> str:
        return (
            f"{WANTED[example['noisy']]}, query {example['query']}, also query "
            f"{example['question']}, thanks"
        )

    rows = alpaca(prompt, EXAMPLES)
    with pytest.raises(SystemExit, match="slots 1 and 2 both look like query, but differ"):
        derive(tmp_path, rows)
    options = ["--slot", "useful.2=question", "--slot", "noisy.2=question"]
    reproduces(derive(tmp_path, rows, *options), prompt)


def test_prompts_that_do_not_show_the_query_are_refused(tmp_path: Path) -> None:
    def prompt(example: Example) -> str:
        return f"{WANTED[example['noisy']]} pages, question {example['question']}"

    with pytest.raises(SystemExit, match="no slot is the query"):
        derive(tmp_path, alpaca(prompt, EXAMPLES))


def test_rows_of_one_quality_are_refused(tmp_path: Path) -> None:
    useful = [each for each in EXAMPLES if not each["noisy"]]
    with pytest.raises(SystemExit, match=r"no word that changes.*--noisy TEXT"):
        derive(tmp_path, alpaca(plain_prompt, useful))


def test_the_mark_of_noisy_prompts_can_be_said(tmp_path: Path) -> None:
    def prompt(example: Example) -> str:
        grade = "B" if example["noisy"] else "A"
        return f"Grade {grade} pages. Query: {example['query']}."

    rows = alpaca(prompt, EXAMPLES)
    with pytest.raises(SystemExit, match="--noisy TEXT"):
        derive(tmp_path, rows)
    with pytest.raises(SystemExit, match="in none of the prompts"):
        derive(tmp_path, rows, "--noisy", "Grade C")
    reproduces(derive(tmp_path, rows, "--noisy", "Grade B"), prompt)


def test_a_query_about_noise_does_not_make_a_prompt_noisy(tmp_path: Path) -> None:
    noise = [{**each, "query": f"noisy miner {i}"} for i, each in enumerate(EXAMPLES) if i % 5 == 0]
    examples = [*EXAMPLES, *noise]
    template = derive(tmp_path, alpaca(plain_prompt, examples))
    for example in examples:
        assert ask(template, example) == plain_prompt(example)


def test_too_few_rows_that_agree_are_refused_with_an_example(tmp_path: Path) -> None:
    rows = alpaca(plain_prompt, EXAMPLES)
    rows[3]["instruction"] = rows[3]["instruction"].replace("words or so", "words at most")
    with pytest.raises(SystemExit) as refused:
        derive(tmp_path, rows)
    said = str(refused.value)
    assert "1 of 80 rows are not reproduced" in said and "row 3 " in said
    assert "-A page has 30 words or so" in said and "+A page has 30 words at most" in said
    assert not (tmp_path / "template.j2").exists()
    reproduces(derive(tmp_path, rows, "--min-share", "0.98"), plain_prompt)


@pytest.mark.parametrize("option", ["x=query", "1=title", "1", "both.1=query"])
def test_a_malformed_slot_option_is_explained(option: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"write N=NAME, useful\.N=NAME"):
        derive(tmp_path, alpaca(plain_prompt, EXAMPLES), "--slot", option)


def test_a_number_that_no_slot_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--slot 9: the useful prompts have the slots 1 to 3"):
        derive(tmp_path, alpaca(plain_prompt, EXAMPLES), "--slot", "9=query")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "assistant", "content": "x"}]}, "0 user messages"),
        ({"messages": ["x"]}, "neither a text nor a list of messages"),
        ({"output": "x"}, "no prompt in"),
    ],
)
def test_rows_without_one_prompt_are_named(row: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"rows\.json, row 1 .*{said}"):
        derive(tmp_path, [*alpaca(plain_prompt, EXAMPLES[:1]), row])


def test_what_the_rows_do_not_tell_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    derive(tmp_path, alpaca(plain_prompt, EXAMPLES))
    said = " ".join(capsys.readouterr().out.split())
    assert "' | ' between several golden answers is a guess" in said
    assert "set episode.top_k" in said
    derive(tmp_path, alpaca(counted_in_words, EXAMPLES), "--answer-separator", " | ")
    assert "note:" not in capsys.readouterr().out


# -- system messages ------------------------------------------------------------------------------


def with_system(rows: list[dict[str, Any]], system: Callable[[Example], str]) -> list[Any]:
    """Rows with a column for it."""
    return [{**row, "system": system(example)} for row, example in zip(rows, EXAMPLES, strict=True)]


def fixed(_: Example) -> str:
    return "Be a search engine. {% raw %} {{ x }}\n"


def by_quality(example: Example) -> str:
    return f"You write {WANTED[example['noisy']]} pages."


def about_the_question(example: Example) -> str:
    wanted = WANTED[example["noisy"]]
    return f'The user wonders about the question: "{example["question"]}"\nBe {wanted}. '


def bare_query(example: Example) -> str:
    return example["query"]


@pytest.mark.parametrize(
    ("system", "prompt"),
    [
        (fixed, plain_prompt),
        (fixed, other_noisy_text),
        (by_quality, plain_prompt),
        (by_quality, quality_at_the_end),
        (about_the_question, counted_in_digits),
    ],
)
@pytest.mark.parametrize("form", [alpaca, messages])
def test_a_system_message_becomes_the_templates_byte_for_byte(
    form: Callable[..., list[dict[str, Any]]],
    system: Callable[[Example], str],
    prompt: Callable[[Example], str],
    tmp_path: Path,
) -> None:
    template = derive(tmp_path, with_system(form(prompt, EXAMPLES), system))
    for example in [*EXAMPLES, *make_examples(60, seed=1)]:
        assert chat(template, example) == [
            {"role": "system", "content": system(example)},
            {"role": "user", "content": prompt(example)},
        ]


def test_the_prompt_may_be_the_query_alone(tmp_path: Path) -> None:
    rows = with_system(alpaca(bare_query, EXAMPLES), by_quality)
    template = derive(tmp_path, rows, "--slot", "1=query")
    reproduces(template, bare_query)
    assert chat(template, EXAMPLES[0])[0]["content"] == by_quality(EXAMPLES[0])


def test_a_system_message_among_the_messages_is_shown_and_goes_over_the_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = with_system(conversations(plain_prompt, EXAMPLES), by_quality)
    template = derive(tmp_path, rows)
    for example in EXAMPLES:
        first, _ = chat(template, example)
        assert first == {"role": "system", "content": "Be a search engine."}
    assert "'Be a search engine.'" in capsys.readouterr().out


def test_without_a_system_message_none_is_sent(tmp_path: Path) -> None:
    template = derive(tmp_path, with_system(alpaca(plain_prompt, EXAMPLES), lambda _: ""))
    assert chat(template, EXAMPLES[0]) == [{"role": "user", "content": plain_prompt(EXAMPLES[0])}]


def test_a_system_message_that_some_rows_lack_is_refused(tmp_path: Path) -> None:
    rows = with_system(alpaca(plain_prompt, EXAMPLES), fixed)
    del rows[3]["system"]
    with pytest.raises(SystemExit, match=r"1 of 80 rows have no system message, such as .*row 3 "):
        derive(tmp_path, rows)


def test_a_row_with_another_system_message_is_not_reproduced(tmp_path: Path) -> None:
    rows = with_system(alpaca(plain_prompt, EXAMPLES), fixed)
    rows[3]["system"] = "Be a poet.\n"
    with pytest.raises(SystemExit, match=r"1 of 80 rows are not reproduced(.|\n)*\+Be a poet\."):
        derive(tmp_path, rows)
    template = derive(tmp_path, rows, "--min-share", "0.98")
    assert chat(template, EXAMPLES[3])[0]["content"] == fixed(EXAMPLES[3])


# -- real questions and queries -------------------------------------------------------------------


def test_the_questions_and_queries_of_a_real_agent(tmp_path: Path) -> None:
    log = ROOT.parent / "shared" / "data" / "search_logs.jsonl.gz"
    if not log.is_file():
        pytest.skip(f"needs the search logs at {log}")
    with gzip.open(log, "rt", encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    examples = [
        {
            "query": each["query"],
            "question": each["question"],
            "answers": [each["golden_answer"]],
            "noisy": number % 2 == 0,
            "count": "five",
        }
        for number, each in enumerate(found)
    ]
    template = derive(tmp_path, alpaca(plain_prompt, examples[:1000]))
    for example in examples:
        assert ask(template, example) == plain_prompt(example)
