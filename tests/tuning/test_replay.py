"""A recorded episode as token ids: those of the rollout that was recorded, bit for bit."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from typing import Any

import pytest
import torch

from tests.helpers.demonstrations import EPISODE, make_record, record_of
from tests.helpers.models import make_tokenizer
from zerosearch.data.geography.facts import load_facts
from zerosearch.generation.generator import Sampling
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.source import PolicySource
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.simulator.scripted import ScriptedSimulator
from zerosearch.tuning.records import RecordedEpisode
from zerosearch.tuning.replay import Replay
from zerosearch.types import Document, Question, Shown, Trajectory

HINT = "I search or answer."


def replay(*records: RecordedEpisode, **settings: Any) -> list[str]:
    """What is wrong with each."""
    episode = dataclasses.replace(EPISODE, **settings)
    return [each.misfit for each in Replay(make_tokenizer(), episode, chat=False).play(records)]


def sampled_episodes(episode: EpisodeSettings) -> tuple[Any, list[Trajectory]]:
    source = PolicySource(path="pkg://zerosearch/policy/quickstart")
    generator, tokenizer = TransformersGenerator(), source.load_tokenizer()
    model = source.load_model()
    generator.bind(model, tokenizer)
    engine = ScriptedSimulator(load_facts())
    questions = [
        Question(uid=f"q:{number}", text=text, golden_answers=("Euro",))
        for number, text in enumerate(
            [
                "Which currency is used in the country where the city of Lyon lies?",
                "What is the capital of the country where the city of Cuzco lies?",
                "In which country is Kyoto?",
            ]
        )
    ]
    with torch.no_grad():
        played = asyncio.run(
            Rollouter(generator, tokenizer, episode).rollout(
                questions,
                engine,
                group_size=32,
                noise_probability=0.5,
                seed=0,
                step=0,
                sampling=Sampling(),
            )
        )
    return tokenizer, played


@pytest.mark.parametrize("hint", [None, HINT], ids=["", "hint"])
def test_invariant_01_a_replay_has_the_very_tokens_of_the_rollout(hint: str | None) -> None:
    episode = dataclasses.replace(EPISODE, invalid_hint=hint, max_turn_tokens=32)
    tokenizer, played = sampled_episodes(episode)
    whole = [each for each in played if each.stop_reason in ("answer", "eos")]
    assert sum(len(each.searches) for each in whole) > 12
    found = Replay(tokenizer, episode, chat=False).play([record_of(each) for each in whole])
    same = 0
    for each, trajectory in zip(found, whole, strict=True):
        ids = trajectory.prompt_ids + trajectory.response_ids
        assert not each.misfit
        assert tokenizer.decode(each.encoded.ids) == tokenizer.decode(ids)
        if each.encoded.ids == ids:  # else a turn was sampled in other tokens than its text has
            assert each.encoded.learned == [False] * len(trajectory.prompt_ids) + trajectory.sampled
            same += 1
    assert same > 0.9 * len(whole)


def test_a_cut_document_is_cut_as_in_the_rollout() -> None:
    long = make_record(searches=2)
    pages = [dataclasses.replace(e, documents=(Document(text="y " * 400),)) for e in long.searches]
    [found] = Replay(make_tokenizer(), EPISODE, chat=False).play(
        [dataclasses.replace(long, searches=tuple(pages))]
    )
    assert not found.misfit
    text = make_tokenizer().decode(found.encoded.ids)
    assert isinstance(text, str) and text.count("y ...\n</information>\n") == 2
    assert text.startswith(f"Question: {long.question}\n")
    pairs = zip(found.encoded.ids, found.encoded.learned, strict=True)
    assert make_tokenizer().decode([i for i, learned in pairs if learned]) == "".join(long.texts)


def test_a_turn_without_an_action_ends_with_eos() -> None:
    record = make_record(searches=1, texts=("hm", *make_record().texts))
    assert replay(record, invalid_hint=HINT) == [""]
    [found] = Replay(
        make_tokenizer(), dataclasses.replace(EPISODE, invalid_hint=HINT), chat=False
    ).play([record])
    start = len(found.encoded.prompt_ids)
    assert found.encoded.ids[start : start + 3] == [*make_tokenizer().encode("hm"), 256]
    assert found.encoded.learned[start : start + 4] == [True, True, True, False]


ANSWER = "<answer> red </answer>"


def unrecorded() -> RecordedEpisode:
    return dataclasses.replace(make_record(), searches=())


@pytest.mark.parametrize(
    ("record", "settings", "said"),
    [
        (make_record(), {"max_prompt_tokens": 20}, "more than episode.max_prompt_tokens=20"),
        (make_record(), {"max_turn_tokens": 30}, "turn 2 has 39 tokens, .*max_turn_tokens=30"),
        (
            make_record(searches=3),
            {"max_context_tokens": 200},
            "ends after turn 2 of 4, by episode.max_context_tokens=200",
        ),
        (make_record(searches=3), {"max_turns": 2}, "turn 3 of 4, by episode.max_turns=2"),
        (make_record(answer=None), {}, "ends with turn 1, after which the episode would go on"),
        (
            make_record(searches=0, texts=(ANSWER, ANSWER)),
            {},
            "after turn 1 of 2, by the answer there",
        ),
        (make_record(texts=("hm", ANSWER)), {}, r"turn 1 of 2, by a turn .*invalid_hint=None"),
        (make_record(texts=()), {}, "the record ends with turn 0"),
        (make_record(texts=(f"{ANSWER} <s>",)), {}, "turn 1 holds '<s>', a control token"),
        (make_record(question="A <pad>?"), {}, "the question holds '<pad>', a control token"),
        (make_record(texts=(f"{ANSWER} or not",)), {}, "turn 1 goes on after its closing tag, wi"),
        (make_record(texts=("<search> x </search>", ANSWER)), {}, "turn 1 asks 'x', .* is 'q0'"),
        (unrecorded(), {}, "the search of turn 1 was not recorded"),
        (make_record(searches=0, answer="blue", texts=(ANSWER,)), {}, "'red', .* is 'blue'"),
    ],
)
def test_what_no_rollout_gives_is_told(
    record: RecordedEpisode, settings: dict[str, Any], said: str
) -> None:
    [misfit] = replay(record, **settings)
    assert re.search(said, misfit), misfit


PAGES = ("y " * 20, "red " * 20)


@pytest.mark.parametrize(
    ("shown", "settings", "said"),
    [
        (Shown(documents=2), {}, ""),
        (None, {"top_k": 1}, ""),
        (
            Shown(documents=2),
            {"top_k": 1},
            "search 1, 'q0': the agent read 2 whole documents, and episode.top_k=1, "
            "episode.max_observation_tokens=300, episode.max_context_tokens=640 show 1 whole",
        ),
        (Shown(documents=1), {}, "read 1 whole documents, and .* show 2 whole documents"),
        (Shown(documents=2), {"max_observation_tokens": 150}, ".* show 1 whole documents"),
        (Shown(documents=1), {"max_observation_tokens": 60}, ".* show [0-9]+ characters of the"),
        (Shown(documents=1, cut_at=40), {"max_observation_tokens": 60}, ""),
        (Shown(documents=1, cut_at=400), {"max_observation_tokens": 60}, "read 400 characters of"),
        (Shown(documents=1, cut_at=40), {"top_k": 1}, "40 characters .* show 1 whole documents"),
    ],
)
def test_an_agent_that_read_other_documents_is_told(
    shown: Shown | None, settings: dict[str, Any], said: str
) -> None:
    pages = tuple(Document(text=text.strip()) for text in PAGES)
    search = dataclasses.replace(make_record().searches[0], documents=pages, shown=shown)
    record = dataclasses.replace(make_record(), searches=(search,))
    [misfit] = replay(record, **{"top_k": 2, "max_observation_tokens": 300, **settings})
    assert bool(misfit) == bool(said) and re.search(said, misfit), misfit


def test_tags_may_be_tokens_of_the_policys_own() -> None:
    tokenizer, record = make_tokenizer(), make_record()
    tags = ["<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>"]
    tokenizer.add_tokens(tags, special_tokens=True)
    [found] = Replay(tokenizer, EPISODE, chat=False).play([record])
    assert not found.misfit
    assert "<think>so</think><answer> red </answer>" in tokenizer.decode(found.encoded.ids)


def test_white_space_after_a_closing_tag_is_never_sampled() -> None:
    [found, expected] = Replay(make_tokenizer(), EPISODE, chat=False).play(
        [make_record(searches=0, texts=(f"{ANSWER}{end}",)) for end in ("\n", "")]
    )
    assert found == expected and not found.misfit
