"""Rebuild the quickstart policy from nothing: tokenizer, skills, mediocre habits.

Three phases teach the skills on clean episodes in made-up and real (training) worlds; the last,
short one mixes the choices. Writes a HF folder. Run:
    python -m scripts.quickstart_policy [--output FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from scripts.quickstart_policy.episodes import CLEAN, MEDIOCRE, EpisodeWriter, Example, Habits
from scripts.quickstart_policy.muon import Muon
from scripts.quickstart_policy.tokenizer import END, build_tokenizer
from scripts.quickstart_policy.worlds import made_up_world, training_world
from zerosearch.data.geography.facts import FactStore, load_facts
from zerosearch.rollout.settings import EpisodeSettings

# The run reads the same file, so that the weights and the run cannot disagree.
SETTINGS: EpisodeSettings = instantiate(OmegaConf.load("configs/episode/quickstart.yaml").episode)
BATCH, SHARD_BATCHES = 64, 16


@dataclass(kw_only=True, frozen=True)
class Phase:
    """One stretch of imitation; `top_k` are the numbers of documents its episodes mix."""

    name: str
    habits: Habits
    steps: int
    peak_lr: float  # of AdamW
    made_up_share: float
    top_k: tuple[int, ...] = (1,)
    queries_only: bool = False
    muon_lr: float | None = None  # None: AdamW for all parameters


# From dense and short to long: asking repeats a name after 20 tokens, reading one document copies
# over 60, whole episodes over hundreds. Copying emerges early, at a fraction of the tokens.
PHASES = (
    Phase(
        name="asking",
        habits=CLEAN,
        steps=900,
        peak_lr=3e-3,
        muon_lr=0.02,
        made_up_share=0.8,
        queries_only=True,
    ),
    Phase(
        name="reading",
        habits=CLEAN,
        steps=600,
        peak_lr=2e-3,
        muon_lr=0.015,
        made_up_share=0.7,
        top_k=(1, 2),
    ),
    Phase(
        name="episodes",
        habits=CLEAN,
        steps=180,
        peak_lr=1.5e-3,
        muon_lr=0.01,
        made_up_share=0.6,
    ),
    Phase(name="mediocre", habits=MEDIOCRE, steps=100, peak_lr=4e-4, made_up_share=0.3),
)
DEFAULT_OUTPUT = Path("src/zerosearch/policy/quickstart")


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama of about a million parameters."""
    end_id = tokenizer.convert_tokens_to_ids(END)
    assert isinstance(end_id, int)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    return LlamaForCausalLM(config)


def write_shard(
    seed: int, phase: Phase, real: FactStore, tokenizer: PreTrainedTokenizerBase
) -> list[list[Example]]:
    """Batches of episodes of similar length, from the real world and a new made-up one."""
    rng = random.Random(f"{phase.name}-{seed}")
    worlds = [real, made_up_world(rng, [place.name for place in real])]
    writers = [
        EpisodeWriter(
            world,
            tokenizer,
            dataclasses.replace(SETTINGS, top_k=top_k),
            phase.habits,
            noise=0.2,
            rng=rng,
        )
        for world in worlds
        for top_k in phase.top_k
    ]
    sizes = len(phase.top_k)
    count = BATCH * SHARD_BATCHES
    examples = []
    for _ in range(count):
        made_up = rng.random() < phase.made_up_share
        writer = writers[made_up * sizes + rng.randrange(sizes)]
        examples.append(writer.write_query() if phase.queries_only else writer.write())
    examples.sort(key=lambda example: len(example.ids))
    batches = [examples[start : start + BATCH] for start in range(0, count, BATCH)]
    rng.shuffle(batches)
    return batches


def collate(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids, attention mask, and mask of sampled tokens, each [B, T]."""
    width = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros(len(examples), width, dtype=torch.bool)
    sampled = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        mask[row, :length] = True
        sampled[row, :length] = torch.tensor(example.sampled)
    return ids, mask, sampled


def imitation_loss(model: LlamaForCausalLM, batch: list[Example]) -> torch.Tensor:
    """Mean cross-entropy of the sampled tokens; logits are made for no others."""
    ids, mask, sampled = collate(batch)
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    chosen = sampled[:, 1:]
    return F.cross_entropy(model.lm_head(hidden[chosen]), ids[:, 1:][chosen])


@torch.no_grad()
def answer_accuracy(model: LlamaForCausalLM, examples: list[Example]) -> dict[int, float]:
    """Share of final answers right in every token given the right history, by hops."""
    right: dict[int, list[bool]] = {1: [], 2: []}
    for start in range(0, len(examples), BATCH):
        part = examples[start : start + BATCH]
        ids, mask, _ = collate(part)
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        for row, example in enumerate(part):
            span = slice(example.answer_start, len(example.ids))
            logits = model.lm_head(hidden[row, span.start - 1 : span.stop - 1])
            right[example.hops].append(bool((logits.argmax(-1) == ids[row, span]).all()))
    return {hops: sum(values) / max(1, len(values)) for hops, values in right.items()}


def build_optimizers(
    model: LlamaForCausalLM, phase: Phase
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices of the layers where the phase asks for it, AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2 and phase.muon_lr]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, lr=phase.peak_lr, betas=(0.9, 0.98), weight_decay=0.0)
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adam, phase.peak_lr)]
    if phase.muon_lr:
        optimizers.append((Muon(matrices, lr=phase.muon_lr), phase.muon_lr))
    return optimizers


def train_phase(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, phase: Phase) -> None:
    """Imitate the phase's episodes with a warm-up and cosine decay."""
    real = training_world()
    held_out = EpisodeWriter(
        load_facts().restricted(["validation"]),
        tokenizer,
        SETTINGS,
        CLEAN,
        noise=0.2,
        rng=random.Random(0),
    )
    write = held_out.write_query if phase.queries_only else held_out.write
    probe = sorted((write() for _ in range(192)), key=lambda example: len(example.ids))
    optimizers = build_optimizers(model, phase)
    warm_up, start = min(100, phase.steps // 5), time.monotonic()
    batches: list[list[Example]] = []
    for step in range(phase.steps):
        if not batches:
            batches = write_shard(step // SHARD_BATCHES, phase, real, tokenizer)
        progress = max(0.0, (step - warm_up) / (phase.steps - warm_up))
        decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer, peak_lr in optimizers:
            optimizer.param_groups[0]["lr"] = peak_lr * min((step + 1) / warm_up, decay)
        loss = imitation_loss(model, batches.pop())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == phase.steps:
            accuracy = answer_accuracy(model, probe)
            minutes = (time.monotonic() - start) / 60
            print(
                f"{phase.name} {step + 1}/{phase.steps} loss {loss.item():.3f}; last turns right "
                f"on held-out subjects: one hop {accuracy[1]:.2f}, two hops {accuracy[2]:.2f} "
                f"({minutes:.1f} min)",
                flush=True,
            )


def main() -> None:
    """Build, teach, spoil, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--work", type=Path, help="keep the model after each phase in this folder")
    parser.add_argument("--start", choices=[phase.name for phase in PHASES], default=PHASES[0].name)
    args = parser.parse_args()
    torch.manual_seed(0)
    names = [phase.name for phase in PHASES]
    first = names.index(args.start)
    if first > 0:
        earlier = args.work / names[first - 1]
        tokenizer = AutoTokenizer.from_pretrained(earlier)
        model = LlamaForCausalLM.from_pretrained(earlier)
    else:
        tokenizer = build_tokenizer(random.Random(0))
        model = build_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    for phase in PHASES[first:]:
        train_phase(model, tokenizer, phase)
        if args.work:
            model.save_pretrained(args.work / phase.name)
            tokenizer.save_pretrained(args.work / phase.name)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
