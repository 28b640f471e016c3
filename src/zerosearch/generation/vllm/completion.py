"""Between the contract of generators and what vLLM takes and gives, wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence

from zerosearch.core.errors import InputError
from zerosearch.generation.generator import Completion, CompletionRequest
from zerosearch.generation.policy_tokens import PolicyTokens
from zerosearch.generation.vllm.llm_engine import Sampled


def room_for(
    prompt_ids: Sequence[int], request: CompletionRequest, context: int | None, field: str
) -> int:
    """Tokens that may be sampled after a prompt.

    Args:
        prompt_ids: token ids [P].
        request: with the caller's own bound.
        context: tokens of prompt and completion together, or None.
        field: the setting that bounds it, for the message.

    Raises:
        InputError: the prompt is empty or leaves no room.
    """
    if not prompt_ids:
        raise InputError("prompt_ids is empty: start the prompt with BOS or a template")
    if context is None:
        return request.max_new_tokens
    if len(prompt_ids) >= context:
        raise InputError(
            f"prompt_ids has {len(prompt_ids)} tokens, the engine's context ({field}) is "
            f"{context}: raise it, or lower the rollout's context budget"
        )
    return min(request.max_new_tokens, context - len(prompt_ids))


def completion_of(sampled: Sampled, tokens: PolicyTokens) -> Completion:
    """What the caller gets; an EOS outranks a stop string that ends in the same token."""
    reason = "stop" if sampled.stopped else "length"
    return Completion(
        token_ids=sampled.token_ids,
        logprobs=sampled.logprobs,
        text=tokens.text(sampled.token_ids),
        stop_reason="eos" if sampled.token_ids[-1] in tokens.eos_ids else reason,
        weight_version=sampled.weight_version,
    )
