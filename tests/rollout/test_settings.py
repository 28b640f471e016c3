import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.types import Question

QUESTION = Question(uid="q", text="Who <b>won</b> & why? {{ 7 }}", golden_answers=("x",))


def settings(**fields: Any) -> EpisodeSettings:
    defaults: dict[str, Any] = {"prompt_template": "plain"}
    return EpisodeSettings(**(defaults | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_prompt_tokens": 0}, "episode.max_prompt_tokens=0: give 1 or more"),
        ({"max_turn_tokens": 0}, "episode.max_turn_tokens=0"),
        ({"max_observation_tokens": -1}, "episode.max_observation_tokens=-1"),
        ({"top_k": 0}, "episode.top_k=0"),
        ({"max_turns": -1}, r"episode.max_turns=-1: give 0 \(no search\) or more"),
        ({"search_timeout_s": 0.0}, "episode.search_timeout_s=0.0: give seconds"),
        ({"search_timeout_s": float("nan")}, "episode.search_timeout_s=nan"),
        ({"formatter": "fancy"}, "'fancy' is unknown; choose one of"),
        ({"invalid_hint": "  "}, "episode.invalid_hint='  ' says nothing"),
        ({"prompt_template": "nowhere"}, r"'nowhere'.*'few_shot', 'plain', .*'search'"),
        (
            {"max_context_tokens": 2547},
            "episode.max_context_tokens=2547 does not hold a prompt of 2048 and a turn of 500",
        ),
    ],
)
def test_a_bad_setting_is_refused_with_its_name_and_value(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**fields)


def test_prompt_and_turn_may_fill_the_context_exactly() -> None:
    assert settings(max_context_tokens=2548).max_context_tokens == 2548


def test_no_search_at_all_is_allowed() -> None:
    assert settings(max_turns=0).max_turns == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Answer me.", "does not show the question: write {{ question }}"),
        ("{{ question }} {{ golden }}", "'golden' is undefined; a template may use question, max"),
        ("one\n{% if %}{{ question }}", "line 2: .*; fix the template"),
    ],
)
def test_a_broken_template_is_found_at_once(tmp_path: Path, text: str, message: str) -> None:
    template = tmp_path / "mine.j2"
    template.write_text(text)
    with pytest.raises(ValueError, match=message):
        settings(prompt_template=str(template))


def test_a_template_file_shows_the_question_as_it_is(tmp_path: Path) -> None:
    template = tmp_path / "mine.j2"
    template.write_text("Q: {{ question }} ({{ max_turns }}, {{ top_k }})\n", encoding="utf-8")
    shown = settings(prompt_template=str(template), max_turns=2, top_k=7).render_prompt(QUESTION)
    assert shown == f"Q: {QUESTION.text} (2, 7)\n"


@pytest.mark.parametrize("template", ["search", "fast"])
@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_defect_14_the_prompt_speaks_of_the_documents_that_are_asked_for(
    top_k: int, template: str
) -> None:
    shown = settings(prompt_template=template, top_k=top_k, max_turns=9).render_prompt(QUESTION)
    assert f"{top_k} documents" in shown and "9 times" in shown
    others = {"1", "2", "3", "4", "5", "five", "three"} - {str(top_k)}
    assert not others & set(shown.replace(QUESTION.text, "").split())


@pytest.mark.parametrize(
    "name",
    [
        "few_shot",
        "plain",
        "search",
        "fast",
        "reason",
        "chain_of_thought",
        "tool_agent",
        "search_o1",
    ],
)
def test_every_shipped_template_ends_with_the_question(name: str) -> None:
    assert settings(prompt_template=name).render_prompt(QUESTION).rstrip().endswith(QUESTION.text)


def test_the_fast_prompt_asks_for_actions_and_leaves_thinking_to_the_policy() -> None:
    fast, slow = (
        settings(prompt_template=name).render_prompt(QUESTION) for name in ("fast", "search")
    )
    actions = ("<search>", "</search>", "<answer>", "</answer>", "<information>")
    assert all(tag in fast for tag in actions)
    assert "think" not in fast.lower() and "think aloud" in slow


def test_invariant_16_settings_and_the_words_of_the_prompt_are_kept_as_plain_values() -> None:
    kept = settings(prompt_template="search", top_k=2, invalid_hint="Try again.").as_dict()
    assert json.loads(json.dumps(kept)) == kept
    names = {field.name for field in dataclasses.fields(EpisodeSettings)}
    assert set(kept) == names | {"prompt_text"}
    assert kept["top_k"] == 2 and kept["invalid_hint"] == "Try again."
    assert "{question}" in kept["prompt_text"] and "up to 2 documents" in kept["prompt_text"]


def test_only_what_shapes_an_episode_must_stay_the_same(tmp_path: Path) -> None:
    template, moved = tmp_path / "mine.j2", tmp_path / "moved.j2"
    template.write_text("A {{ question }}")
    moved.write_text("A {{ question }}")
    saved = settings(prompt_template=str(template)).as_dict()
    settings(prompt_template=str(moved), search_timeout_s=600.0).check_same(saved)
    moved.write_text("B {{ question }}")
    with pytest.raises(ValueError, match=r"episode\.prompt_template is 'B .* trained with 'A "):
        settings(prompt_template=str(moved)).check_same(saved)
