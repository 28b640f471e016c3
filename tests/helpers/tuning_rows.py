"""Simulation-tuning rows of our own wording, in the forms in which such data sets are published."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

PEOPLE = ["Ada Lovelace", "Olaf Palme", "Mary O'Neil", "José Martí", "Lu Xun", "Edith Stein"]
PLACES = ["Lima", "Gdansk, Poland", "New York", "Kraków", "Cork", "Port-au-Prince", "Oslo"]
ASKED = [
    "where was {} born",
    "in which town did {} live around {}",
    "{} died at what place",
    "which city elected {}, its mayor of {}",
    "who took the photo of {}",
    "what did {} do there",
    "name the birthplace of {} ({})",
    "when will they honour {}",
]
SOUGHT = ["{} birthplace", "biography of {}", "{} {} town", "where {} lived", "{}", "photo {} {}"]
WANTED = {
    False: "useful",
    True: "noisy",
}

Example = dict[str, Any]


def make_examples(count: int, seed: int = 0) -> list[Example]:
    """Queries, questions and answers; some with marks, quotes, braces or several answers."""
    rng = random.Random(seed)
    examples = []
    for number in range(count):
        person, year = rng.choice(PEOPLE), rng.randint(1500, 1990)
        question = rng.choice(ASKED).format(person, year)
        if number % 3:
            question = f"{question[0].upper()}{question[1:]}?"
        answers = rng.sample(PLACES, 1 + (number % 4 == 0))
        query = rng.choice(SOUGHT).format(person, year)
        if number % 7 == 0:
            query = f'"{person}" {{site}} {number}'
        examples.append(
            {
                "query": query,
                "question": question,
                "answers": answers,
                "noisy": bool(rng.random() < 0.5),
                "count": rng.choice(["three", "five"]),
            }
        )
    return examples


def plain_prompt(example: Example) -> str:
    """One sentence changes a word; question and answer are named in a sentence."""
    wanted = WANTED[example["noisy"]]
    return (
        f"Play a search engine.\nFor the query below write five {wanted} pages.\n\n"
        f'Somebody wonders about the question: "{example["question"]}" and the answer is '
        f"{' | '.join(example['answers'])}.\nA page has 30 words or so and is {wanted}.\n\n"
        f"Query: {example['query']}\n{wanted.capitalize()} pages:\n"
    )


def alpaca(prompt: Callable[[Example], str], examples: list[Example]) -> list[dict[str, Any]]:
    return [
        {"instruction": prompt(each), "input": "", "output": "Doc 1: text"} for each in examples
    ]


def messages(prompt: Callable[[Example], str], examples: list[Example]) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": prompt(each)},
                {"role": "assistant", "content": "Doc 1: text"},
            ]
        }
        for each in examples
    ]


def conversations(
    prompt: Callable[[Example], str], examples: list[Example]
) -> list[dict[str, Any]]:
    return [
        {
            "conversations": [
                {"from": "system", "value": "Be a search engine."},
                {"from": "human", "value": prompt(each)},
                {"from": "gpt", "value": "Doc 1: text"},
            ]
        }
        for each in examples
    ]
