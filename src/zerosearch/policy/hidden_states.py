"""The hidden states from which chosen tokens are predicted: what log-probs and values start from.

Legend: B trajectories, T tokens, N selected tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from zerosearch.core.errors import InputError
from zerosearch.policy.flex_attention import FLEX_ATTENTION, padded_length
from zerosearch.policy.sharding import is_sharded

LEAST_SHARED = 128  # tokens that are worth two forward passes in place of one


def check_selection(attended: Tensor, selected: Tensor) -> None:
    """Refuse a selection of tokens that no state predicts.

    Args:
        attended: [B, T] bool, true on real tokens.
        selected: [B, T] bool.

    Raises:
        InputError: a selected token has no real token before it (position 0, or the first one after
            left padding), or is padding.
    """
    predictable = attended & F.pad(attended[:, :-1], (1, 0))
    if bool((selected & ~predictable).any()):
        raise InputError(
            "select_mask selects padding or a token without a real token before it (position 0): "
            "only tokens that the model predicts can be selected"
        )


def predicting_states(
    causal: PreTrainedModel, input_ids: Tensor, attended: Tensor, selected: Tensor, *, packed: bool
) -> Tensor:
    """Hidden states [N, H] that predict the selected tokens, row by row.

    Args:
        causal: the causal LM, without what PEFT has put around it.
        input_ids: [B, T], padded on either side with anything.
        attended: [B, T] bool, true on real tokens.
        selected: [B, T] bool, see `check_selection`.
        packed: read the real tokens as one row without padding. Rows are told apart by their
            positions, which start at 0.
    """
    if packed:
        return _read_packed(causal, input_ids, attended, selected)
    if shares_prefixes(causal) and (shared := shared_prefix(input_ids, attended, selected)):
        return _read_shared(causal, input_ids, attended, selected, shared)
    return _read_padded(causal, input_ids, attended, selected)


def shares_prefixes(model: nn.Module) -> bool:
    """Whether the model reads what all rows begin with only once: on a CPU, whole, without packing.

    Keys and values of the shared part are kept for the rows; layers that are computed again for
    their backward pass (gradient checkpointing) and layers of another kind keep none.
    """
    config: Any = getattr(model, "config", None)
    if config is None or is_sharded(model):
        return False
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    full = set(kinds) == {"full_attention"} if kinds else config.model_type == "llama"
    on_cpu = next(model.parameters()).device.type == "cpu"
    return full and on_cpu and not getattr(model, "is_gradient_checkpointing", False)


def shared_prefix(input_ids: Tensor, attended: Tensor, selected: Tensor) -> int:
    """Tokens that all rows begin with and that predict no selected one; 0 where they are few.

    Such are the examples of a few-shot prompt, whatever the question, and a group's whole prompt.

    Args: as of `predicting_states`.
    """
    same = ((input_ids == input_ids[:1]) & attended).all(dim=0)
    shared = min(int(same.long().cumprod(0).sum()), same.shape[0] - 1)
    columns = selected.any(dim=0).nonzero()
    if len(columns):
        shared = min(shared, int(columns[0]) - 1)
    return shared if len(input_ids) > 1 and shared >= LEAST_SHARED else 0


def forward_method(model: nn.Module, computation: Callable[..., Any]) -> Callable[..., Any]:
    """A computation bound to the model, known to FSDP2 as a forward method where it is sharded.

    FSDP2 gathers the weights of its root around registered methods only, and a computation that
    leaves out the head never calls the root's own forward.

    Args:
        model: first argument of the computation.
        computation: a function of a module; returns tensors, in tuples at most, because FSDP2 looks
            for them.
    """
    if not isinstance(model, FSDPModule):
        return MethodType(computation, model)
    name = computation.__name__
    if not hasattr(model, name):
        setattr(model, name, MethodType(computation, model))
        register_fsdp_forward_method(model, name)
    return getattr(model, name)


def _read_padded(
    causal: PreTrainedModel, input_ids: Tensor, attended: Tensor, selected: Tensor
) -> Tensor:
    hidden = causal.get_decoder()(
        input_ids=input_ids,
        attention_mask=attended.long(),
        position_ids=_positions(attended),
        use_cache=False,
    ).last_hidden_state  # [B, T, H]
    return hidden[:, :-1][selected[:, 1:]]


def _read_shared(
    causal: PreTrainedModel, input_ids: Tensor, attended: Tensor, selected: Tensor, shared: int
) -> Tensor:
    """Keys and values of the first row's shared part serve all rows, and gather their gradients."""
    decoder, positions = causal.get_decoder(), _positions(attended)
    cache = DynamicCache()
    decoder(
        input_ids=input_ids[:1, :shared],
        position_ids=positions[:1, :shared],
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_repeat_interleave(len(input_ids))
    hidden = decoder(
        input_ids=input_ids[:, shared:],
        attention_mask=attended.long(),
        position_ids=positions[:, shared:],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state  # [B, T - shared, H]
    return hidden[:, :-1][selected[:, shared + 1 :]]


def _read_packed(
    causal: PreTrainedModel, input_ids: Tensor, attended: Tensor, selected: Tensor
) -> Tensor:
    ids, positions = input_ids[attended], _positions(attended)[attended]  # [real tokens]
    if causal.config.get_text_config()._attn_implementation == FLEX_ATTENTION:
        # each token of padding has position 0, so that it is a sequence of its own
        padding = (0, padded_length(len(ids)) - len(ids))
        ids, positions = F.pad(ids, padding), F.pad(positions, padding)
    hidden = causal.get_decoder()(
        input_ids=ids[None], position_ids=positions[None], use_cache=False
    ).last_hidden_state[0]  # [tokens, H]
    return hidden[selected[attended].nonzero()[:, 0] - 1]


def _positions(attended: Tensor) -> Tensor:
    return (attended.long().cumsum(-1) - 1).clamp(min=0)
