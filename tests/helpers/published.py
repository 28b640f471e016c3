"""What a run of the paper needs, made small: a policy of the published form, rows and a simulator.

The policy has the published family, rope, norms, a head that is tied or not, and a tokenizer of
that family; only its sizes are small. It asks or answers, and the more it has read the more often
it answers; a query is one of two words, an answer one of four, each as likely as the others. The
first MLP holds what follows what, so that a tied head can read it; attention in the second layer
looks for documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Qwen2Tokenizer

from tests.helpers.configs import ROOT
from tests.helpers.hub import parquet
from tests.helpers.models import make_model
from tests.helpers.openai_server import Reply, completion
from zerosearch.rollout.tags import ANSWER, INFORMATION, SEARCH

QUICKSTART = ROOT / "src" / "zerosearch" / "policy" / "quickstart"  # lends its BPE
EOS, BOS = "<|endoftext|>", "<|begin_of_text|>"
ANSWERS = (" Africa", " America", " Asia", " Europe")  # one token each, with its blank
QUERIES = (" country", " city")
OTHER = ""  # all other tokens
SLOTS = (OTHER, *SEARCH, *ANSWER, *INFORMATION, *ANSWERS, *QUERIES)
HEAD_DIM = 32  # which the kernels of vLLM's CPU build know
SIZES = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}

_CERTAIN = 14.0  # logit of a likely successor: the 2,000 others together get less than a percent
_RATHER = 3.5  # more for a search than for an answer; the instruction names the end of documents
_MEMORY = 24.0  # squared, times the share of the tokens that end documents
_FOLLOWS = 0.05  # by which logits stand in the embedding: small beside the 1 of the token itself


def save_published_policy(folder: Path, architecture: Mapping[str, Any]) -> Path:
    """Write a policy in bfloat16, as such policies are published, and its tokenizer.

    Args:
        folder: is made.
        architecture: fields of config.json as published.
    """
    tokenizer = _make_tokenizer(str(architecture["model_type"]))
    slots = [0] * SIZES["vocab_size"]  # by token id
    for number, text in enumerate(SLOTS[1:], 1):
        (token,) = tokenizer.encode(text, add_special_tokens=False)
        slots[token] = number
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = make_model(**{**architecture, **SIZES, **ids, "head_dim": HEAD_DIM})
    _teach(model, torch.tensor(slots))
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
    return folder


def _make_tokenizer(model_type: str) -> PreTrainedTokenizerBase:
    """Qwen's reads words in its own way and writes no BOS; Llama's begins each text with one."""
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)
    if model_type == "qwen2":
        bpe = json.loads((QUICKSTART / "tokenizer.json").read_text())["model"]
        tokenizer = Qwen2Tokenizer(bpe["vocab"], [tuple(pair) for pair in bpe["merges"]])  # type: ignore[arg-type]
        tokenizer.add_tokens([*SEARCH, *ANSWER, *INFORMATION])
        return tokenizer
    tokenizer.add_special_tokens({"bos_token": BOS})
    tokenizer.pad_token = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[union-attr]
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    return tokenizer


@torch.no_grad()
def _teach(model: PreTrainedModel, slots_V: torch.Tensor) -> None:
    count, width = len(SLOTS), SIZES["hidden_size"]
    embedding = torch.zeros(len(slots_V), width)
    embedding[:, :count] = torch.eye(count)[slots_V]  # who a token is
    embedding[:, count : 2 * count] = _FOLLOWS * _successors().T[slots_V]  # whom it follows
    decoder: Any = model.model
    decoder.embed_tokens.weight.copy_(embedding)
    model.get_output_embeddings().weight.copy_(embedding)  # type: ignore[union-attr]
    read, write = SLOTS.index(INFORMATION[1]), count + SLOTS.index(INFORMATION[1])
    mlp = decoder.layers[0].mlp  # writes who the last token is to where the head reads that
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.weight[:count].copy_(torch.eye(count, width))  # 7 to 8: the norm comes before
    mlp.down_proj.weight.zero_()
    mlp.down_proj.weight[count : 2 * count, :count].copy_(torch.eye(count) / 7)
    for layer in decoder.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.v_proj, layer.self_attn.o_proj):
            projection.weight.zero_()
    attention = decoder.layers[1].self_attn
    attention.v_proj.weight[0, read] = attention.o_proj.weight[write, 0] = _MEMORY
    decoder.norm.weight.zero_()
    decoder.norm.weight[count : 2 * count] = 1 / (_FOLLOWS * width**0.5)


def _successors() -> torch.Tensor:
    """Logits of the slot that follows, [from, to]; none leads to the other tokens."""
    logits = torch.zeros(len(SLOTS), len(SLOTS))
    follow = {
        (OTHER,): (SEARCH[0], ANSWER[0]),
        INFORMATION[1:]: ANSWER[:1],
        SEARCH[:1]: QUERIES,
        QUERIES: SEARCH[1:],
        ANSWER[:1]: ANSWERS,
        ANSWERS: ANSWER[1:],
    }
    for before, after in follow.items():
        for first in before:
            for second in after:
                logits[SLOTS.index(first), SLOTS.index(second)] = _CERTAIN
    logits[SLOTS.index(OTHER), SLOTS.index(SEARCH[0])] += _RATHER
    return logits


def write_published_rows(folder: Path, *, train: int, test: int) -> None:
    """Write the two files of the data set of the paper, in its form.

    Args:
        folder: of the set, is made.
        train: number of training rows.
        test: of held-out rows.
    """
    folder.mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        (folder / f"{split}.parquet").write_bytes(parquet([_row(split, n) for n in range(count)]))


def _row(split: str, number: int) -> dict[str, Any]:
    """As in Alibaba-NLP/ZeroSearch_dataset, whose prompt is Search-R1's."""
    question = f"on which continent lies the city number {number} of the {split} set?"
    answers = [ANSWERS[number % len(ANSWERS)].strip()]
    return {
        "id": f"{split}_{number}",
        "question": question,
        "golden_answers": answers,
        "data_source": "nq",
        "prompt": [{"role": "user", "content": f"Answer the given question. {question}\n"}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
        "extra_info": {"index": number, "split": split},
    }


def simulate(body: Mapping[str, Any]) -> Reply:
    """A good simulator's reply to the shipped prompt: documents with the answer, or without."""
    asked = body["messages"][-1]["content"]
    count, quality = re.findall(r"Write (\d+) (USEFUL|NOISY) documents?\.", asked)[-1]
    answer = re.findall(r"Correct answer: (.+)", asked)[-1]
    said = f"The city lies in {answer}." if quality == "USEFUL" else "The city has a large port."
    return completion("\n".join(f"Doc {n + 1}: {said}" for n in range(int(count))), tokens=100)
