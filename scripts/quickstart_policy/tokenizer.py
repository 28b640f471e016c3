"""The byte-level BPE tokenizer of the quickstart policy."""

from __future__ import annotations

import random

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scripts.quickstart_policy.worlds import made_up_world, training_world
from zerosearch.data.geography.facts import BRIDGE_SPLIT
from zerosearch.data.geography.wording import (
    ONE_HOP_RELATIONS,
    TWO_HOP_RELATIONS,
    word_passage,
    word_query,
    word_question,
)
from zerosearch.rollout.tags import ANSWER, INFORMATION, SEARCH

VOCABULARY = 2048
END = "<|endoftext|>"


def training_texts(rng: random.Random) -> list[str]:
    """Passages, questions and queries about training subjects and made-up places."""
    real = training_world()
    names = [place.name for place in real]
    texts = [f"Question: Doc {number}:\n" for number in range(1, 6)] * 500
    for world in (real, made_up_world(rng, names)):
        for place in world:
            texts.append(f" {word_passage(place, rng)}\n")
            if place.split == BRIDGE_SPLIT:
                continue
            for hops, table in ((1, ONE_HOP_RELATIONS), (2, TWO_HOP_RELATIONS)):
                relation = rng.choice(table[place.kind])
                texts.append(f" {word_question(place, relation, hops, rng)}\n")
                texts.append(f" {word_query(relation, place.name)} ")
    return texts


def build_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the tags of the episode grammar are single tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 7,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(training_texts(rng), trainer)
    tags = [*SEARCH, *ANSWER, *INFORMATION]
    core.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
