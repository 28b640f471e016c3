"""Log-probs and entropy of chosen tokens, with at most one chunk of logits in memory.

The backbone runs on the whole batch; the language-model head only on the positions that are asked
for, chunk by chunk, and again chunk by chunk in the backward pass (checkpointing). For 32 sequences
of 4,096 tokens and 152,000 words the logits would otherwise take 80 GB.

Legend: B trajectories, T tokens, N selected tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig
from transformers.utils.generic import is_flash_attention_requested

from zerosearch.core.errors import InputError
from zerosearch.policy.flex_attention import FLEX_ATTENTION
from zerosearch.policy.hidden_states import check_selection, forward_method, predicting_states
from zerosearch.policy.sharding import base_model, compute_device, compute_dtype, reshard


@dataclass(kw_only=True, slots=True, frozen=True)
class TokenStats:
    """Statistics of the selected tokens; 0 everywhere else."""

    logprobs: Tensor  # [B, T] float32, nats; index t is the token at t given the tokens before it
    entropy: Tensor  # [B, T] float32, nats, of the distribution that token was drawn from
    top: Tensor  # [B, T] float32, 1 where the token is the likeliest there is


def token_logprobs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    select_mask: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    with_entropy: bool = True,
    entropy_gradient: bool = True,
    with_top: bool = False,
    packed: bool = False,
) -> TokenStats:
    """Log-probs and entropy of the selected tokens under the model, differentiable.

    Every parameter gets a gradient, if only zeros, also when nothing is selected: ranks with and
    without data run the same collectives. Under FSDP2 the head must be in the root group, because
    ranks may differ in their number of chunks.

    Args:
        model: causal LM or PeftModel around one.
        input_ids: [B, T], padded on either side with anything.
        attention_mask: [B, T], true on real tokens.
        select_mask: [B, T], true on tokens whose statistics are wanted.
        temperature: logits are divided by it, as in sampling.
        chunk_tokens: most rows of logits that exist at one time.
        with_entropy: False leaves the entropy at 0 and saves its share of time.
        entropy_gradient: False makes the entropy a constant. Give it where no loss reads it: what a
            chunk keeps for a gradient that nobody asks for stays until the backward pass has ended.
        with_top: False leaves `top` at 0 and saves its share of time.
        packed: read the real tokens as one row without padding, see `packs_sequences`.

    Returns:
        `TokenStats`, zeros outside `select_mask`.

    Raises:
        InputError: temperature or chunk size not positive, or a selected token has no real token
            before it (position 0, or the first one after left padding).
    """
    if temperature <= 0:
        raise InputError(f"temperature={temperature} gives no distribution: use a value above 0")
    if chunk_tokens < 1:
        raise InputError(f"chunk_tokens={chunk_tokens} must be at least 1")
    attended, selected = attention_mask.bool(), select_mask.bool()
    check_selection(attended, selected)
    logprobs, entropy, top = forward_method(model, _selected_stats)(
        input_ids,
        attended,
        selected,
        temperature,
        chunk_tokens,
        with_entropy,
        entropy_gradient,
        with_top,
        packed,
    )
    return TokenStats(logprobs=logprobs, entropy=entropy, top=top)


def packs_sequences(model: nn.Module) -> bool:
    """Whether the model's attention reads packed sequences at the price of each by itself.

    Flash attention takes their bounds, flex attention skips blocks between them; the other
    implementations would compute, and mask, attention over the whole row.
    """
    config = base_model(model).config.get_text_config()
    return config._attn_implementation == FLEX_ATTENTION or is_flash_attention_requested(config)


def packs_rightly(model: nn.Module) -> bool:
    """Whether two sequences in one row have the log-probs of each alone; a collective if sharded.

    Families that do not make their mask from positions, or whose layers carry a state along the
    row, would be trained on wrong log-probs without any other sign.
    """
    size = min(64, base_model(model).config.get_text_config().vocab_size)
    ids = torch.arange(16, device=compute_device(model)).remainder(size).view(2, 8).flip(0)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 5:] = False
    select = mask.clone()
    select[:, 0] = False
    # compiled layers run as they were written: they would be compiled for these few tokens alone
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        packed, padded = (
            token_logprobs(model, ids, mask, select, with_entropy=False, packed=packed).logprobs
            for packed in (True, False)
        )
    reshard(model)
    return (packed - padded).abs().max().item() <= _tolerance(model)


def verify_logprobs(model: nn.Module) -> None:
    """Compare with the model's own forward pass on a few tokens; a collective where sharded.

    Families differ in what they do to the logits after the head (scaling, soft caps); one that is
    not known here would be trained on wrong log-probs without any other sign.

    Raises:
        InputError: the two differ.
    """
    causal = base_model(model)
    size = min(64, causal.config.get_text_config().vocab_size)
    ids = torch.arange(8, device=compute_device(model)).remainder(size)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    select = mask.clone()
    select[:, 0] = False
    with torch.no_grad():
        chunked = token_logprobs(model, ids, mask, select, with_entropy=False).logprobs[:, 1:]
        logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits.float()
    full = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    gap = (chunked - full).abs().max().item()
    if not gap <= _tolerance(model):
        raise InputError(
            f"log-probs of model_type={causal.config.model_type} differ by {gap:.3g} from its own "
            "forward pass: its logits are not those of its head; teach "
            "zerosearch.policy.logprobs.logit_transform this family, or use another model"
        )


def _tolerance(model: nn.Module) -> float:
    """Nats by which a log-prob may differ from one way of computing it to another.

    Products of float32 matrices have 10 bits on a GPU (TF32), those of bfloat16 fewer.
    """
    exact = compute_dtype(model) == torch.float32 and compute_device(model).type == "cpu"
    return 1e-3 if exact else 0.1


def logit_transform(config: PretrainedConfig) -> Callable[[Tensor], Tensor]:
    """What a family does to the logits after the head: Gemma 2-4, Cohere, Granite; else nothing."""
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        return lambda logits: torch.tanh(logits / cap) * cap
    if config.model_type.startswith("cohere"):
        return lambda logits: logits * config.logit_scale
    if config.model_type.startswith("granite"):
        return lambda logits: logits / config.logits_scaling
    return lambda logits: logits


def _selected_stats(
    model: nn.Module,
    input_ids: Tensor,
    attended: Tensor,
    selected: Tensor,
    temperature: float,
    chunk_tokens: int,
    with_entropy: bool,
    entropy_gradient: bool,
    with_top: bool,
    packed: bool,
) -> tuple[Tensor, ...]:
    """What `TokenStats` holds, [B, T] each."""
    causal = base_model(model)
    rows = predicting_states(causal, input_ids, attended, selected, packed=packed)  # [N, H]
    targets = input_ids[selected]  # [N]
    transform = logit_transform(causal.config.get_text_config())
    head = causal.get_output_embeddings()
    assert head is not None, "a causal LM has a head"

    def chunk_stats(rows: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        logits = transform(head(rows)).float() / temperature  # [chunk, V]
        log_z = logits.logsumexp(-1)
        logprobs = logits.gather(-1, targets[:, None])[:, 0] - log_z
        entropy = top = torch.zeros_like(logprobs)
        if with_top:
            top = (logits.argmax(-1) == targets).float()
        if with_entropy:
            with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
                entropy = log_z - (logits.softmax(-1) * logits).sum(-1)
        return logprobs, entropy, top

    # split gives one chunk of no rows where nothing is selected: the gradient path stays whole
    chunks = [
        checkpoint(chunk_stats, rows_n, targets_n, use_reentrant=False)
        for rows_n, targets_n in zip(
            rows.split(chunk_tokens), targets.split(chunk_tokens), strict=True
        )
    ]
    stats_n = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
    zeros = stats_n[0].new_zeros(selected.shape)
    return tuple(zeros.masked_scatter(selected, each) for each in stats_n)
