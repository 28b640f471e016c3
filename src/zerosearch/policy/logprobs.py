"""Log-probs and entropy of chosen tokens, with at most one chunk of logits in memory.

The backbone runs on the whole batch; the language-model head only on the positions that are asked
for, chunk by chunk, and again chunk by chunk in the backward pass (checkpointing). For 32 sequences
of 4,096 tokens and 152,000 words the logits would otherwise take 80 GB.

Legend: B trajectories, T tokens, N selected tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from zerosearch.policy.sharding import base_model, compute_device, compute_dtype

_FSDP_METHOD = "selected_token_stats"


@dataclass(kw_only=True, slots=True, frozen=True)
class TokenStats:
    """Statistics of the selected tokens; 0 everywhere else."""

    logprobs: Tensor  # [B, T] float32, nats; index t is the token at t given the tokens before it
    entropy: Tensor  # [B, T] float32, nats, of the distribution that token was drawn from


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
        packed: read the real tokens as one row without padding, see `packs_sequences`. Rows are
            told apart by their positions, which start at 0.

    Returns:
        `TokenStats`, zeros outside `select_mask`.

    Raises:
        ValueError: temperature or chunk size not positive, or a selected token has no real token
            before it (position 0, or the first one after left padding).
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} gives no distribution: use a value above 0")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 1")
    attended, selected = attention_mask.bool(), select_mask.bool()
    predictable = attended & F.pad(attended[:, :-1], (1, 0))
    if bool((selected & ~predictable).any()):
        raise ValueError(
            "select_mask selects padding or a token without a real token before it (position 0): "
            "only tokens that the model predicts can be selected"
        )
    run = _runner(model)
    read = _read_packed if packed else _read_padded
    logprobs, entropy = run(
        input_ids,
        attended,
        selected,
        temperature,
        chunk_tokens,
        with_entropy,
        entropy_gradient,
        read,
    )
    return TokenStats(logprobs=logprobs, entropy=entropy)


def packs_sequences(model: nn.Module) -> bool:
    """Whether the model's attention reads packed sequences at the price of each by itself.

    Flash attention takes their bounds, flex attention skips blocks between them; the other
    implementations would compute, and mask, attention over the whole row.
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    config = cast(PreTrainedModel, causal).config.get_text_config()
    return config._attn_implementation == "flex_attention" or is_flash_attention_requested(config)


def verify_logprobs(model: nn.Module) -> None:
    """Compare with the model's own forward pass on a few tokens; a collective where sharded.

    Families differ in what they do to the logits after the head (scaling, soft caps); one that is
    not known here would be trained on wrong log-probs without any other sign.

    Raises:
        ValueError: the two differ.
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
    if not gap <= (1e-3 if compute_dtype(model) == torch.float32 else 0.1):
        raise ValueError(
            f"log-probs of model_type={causal.config.model_type} differ by {gap:.3g} from its own "
            "forward pass: its logits are not those of its head; teach "
            "zerosearch.policy.logprobs.logit_transform this family, or use another model"
        )


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


def _runner(model: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The computation bound to the model, known to FSDP2 as a forward method where it is sharded.

    FSDP2 gathers the weights of its root around registered methods only, and this one never calls
    the root's own forward.
    """
    if not isinstance(model, FSDPModule):
        return MethodType(_selected_stats, model)
    if not hasattr(model, _FSDP_METHOD):
        setattr(model, _FSDP_METHOD, MethodType(_selected_stats, model))
        register_fsdp_forward_method(model, _FSDP_METHOD)
    return getattr(model, _FSDP_METHOD)


def _selected_stats(
    model: nn.Module,
    input_ids: Tensor,
    attended: Tensor,
    selected: Tensor,
    temperature: float,
    chunk_tokens: int,
    with_entropy: bool,
    entropy_gradient: bool,
    read: Callable[[PreTrainedModel, Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropy, [B, T] each; a tuple, because FSDP2 looks for tensors in it."""
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    causal = cast(PreTrainedModel, causal)
    rows = read(causal, input_ids, attended, selected)  # [N, H]
    targets = input_ids[selected]  # [N]
    transform = logit_transform(causal.config.get_text_config())
    head = causal.get_output_embeddings()
    assert head is not None, "a causal LM has a head"

    def chunk_stats(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = transform(head(rows)).float() / temperature  # [chunk, V]
        log_z = logits.logsumexp(-1)
        logprobs = logits.gather(-1, targets[:, None])[:, 0] - log_z
        if not with_entropy:
            return logprobs, torch.zeros_like(logprobs)
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            return logprobs, log_z - (logits.softmax(-1) * logits).sum(-1)

    # split gives one chunk of no rows where nothing is selected: the gradient path stays whole
    chunks = [
        checkpoint(chunk_stats, rows_n, targets_n, use_reentrant=False)
        for rows_n, targets_n in zip(
            rows.split(chunk_tokens), targets.split(chunk_tokens), strict=True
        )
    ]
    logprobs_n, entropy_n = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    zeros = logprobs_n.new_zeros(selected.shape)
    return zeros.masked_scatter(selected, logprobs_n), zeros.masked_scatter(selected, entropy_n)


def _read_padded(
    causal: PreTrainedModel, input_ids: Tensor, attended: Tensor, selected: Tensor
) -> Tensor:
    """Hidden states [N, H] that predict the selected tokens."""
    hidden = causal.get_decoder()(
        input_ids=input_ids,
        attention_mask=attended.long(),
        position_ids=_positions(attended),
        use_cache=False,
    ).last_hidden_state  # [B, T, H]
    return hidden[:, :-1][selected[:, 1:]]


def _read_packed(
    causal: PreTrainedModel, input_ids: Tensor, attended: Tensor, selected: Tensor
) -> Tensor:
    """The same, from one row that holds the real tokens of all of them."""
    hidden = causal.get_decoder()(
        input_ids=input_ids[attended][None],
        position_ids=_positions(attended)[attended][None],
        use_cache=False,
    ).last_hidden_state[0]  # [real tokens, H]
    return hidden[selected[attended].nonzero()[:, 0] - 1]


def _positions(attended: Tensor) -> Tensor:
    return (attended.long().cumsum(-1) - 1).clamp(min=0)
