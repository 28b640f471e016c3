"""The critic of PPO: the policy's model with a value head in the place of its own.

It starts from the policy's files, not from its present weights, and shares nothing with the policy.

Legend: B trajectories, T tokens, N selected tokens, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zerosearch.policy.hidden_states import check_selection, forward_method, predicting_states
from zerosearch.policy.loading import load_sharded
from zerosearch.policy.sharding import Sharding, base_model
from zerosearch.policy.source import PolicySource


def load_critic(source: PolicySource, sharding: Sharding | None) -> nn.Module:
    """Load a critic as `load_policy` loads the policy; a collective where it is sharded.

    The value head starts at zero, and with it every value: the first advantages are then the
    returns themselves. A random head would add noise of its own to them, large beside rewards
    between 0 and 1. In the first update only the head has a gradient other than zero.

    Args:
        source: the policy whose architecture, weights and adapters the critic starts with.
        sharding: how it is spread over the ranks; None loads it whole.

    Returns:
        See `token_values`. In full training all of it is trainable; with LoRA adapters and head.

    Raises:
        InputError: as `load_policy`.
    """
    if sharding is not None:
        return load_sharded(source, sharding, put_value_head)
    model = source.load_model()
    put_value_head(model)
    return model


def put_value_head(model: nn.Module) -> str:
    """Put a trainable `Linear(H, 1)` of zeros in the place of the language-model head.

    It is kept in float32 whatever the dtype of the model, as adapters are, and never tied.

    Args:
        model: causal LM or PeftModel around one, changed in place.

    Returns:
        The name of the head's module in the causal LM.
    """
    base = base_model(model)
    old = base.get_output_embeddings()
    assert old is not None, "a causal LM has a head"
    name = next(name for name, module in base.named_modules() if module is old)
    head = nn.Linear(base.config.get_text_config().hidden_size, 1, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    base.set_submodule(name, head)
    base.config.get_text_config().tie_word_embeddings = False
    return name


def token_values(
    critic: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    select_mask: Tensor,
    *,
    packed: bool = False,
) -> Tensor:
    """Values of the states in which the selected tokens were sampled, differentiable.

    Every trainable parameter gets a gradient, if only zeros, also when nothing is selected.

    Args:
        critic: as of `load_critic`.
        input_ids: [B, T], padded on either side with anything.
        attention_mask: [B, T], true on real tokens.
        select_mask: [B, T], true on tokens whose state's value is wanted.
        packed: read the real tokens as one row without padding, see `packs_sequences`.

    Returns:
        [B, T] float32; index t is the value of the tokens before t, 0 where `select_mask` is false.

    Raises:
        InputError: a selected token has no real token before it.
    """
    attended, selected = attention_mask.bool(), select_mask.bool()
    check_selection(attended, selected)
    return forward_method(critic, _selected_values)(input_ids, attended, selected, packed)


def _selected_values(
    critic: nn.Module, input_ids: Tensor, attended: Tensor, selected: Tensor, packed: bool
) -> Tensor:
    causal = base_model(critic)
    rows = predicting_states(causal, input_ids, attended, selected, packed=packed)  # [N, H]
    head = causal.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    # in float32 whatever the states are in: bfloat16 would round values by up to 0.2%
    with torch.autocast(rows.device.type, enabled=False):
        values = F.linear(rows.float(), head.weight.float(), head.bias.float())[:, 0]  # [N]
    return values.new_zeros(selected.shape).masked_scatter(selected, values)
