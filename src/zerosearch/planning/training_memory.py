"""What the pass over a micro-batch adds to weights, gradients and optimizer states."""

from __future__ import annotations

from torch import nn

from zerosearch.planning.memory_table import MemoryRow
from zerosearch.planning.run import PlannedRun
from zerosearch.policy.activation_memory import (
    Pass,
    kept_bytes,
    layer_backward_bytes,
    logits_bytes,
)
from zerosearch.policy.adaptation import decoder_layers
from zerosearch.policy.flex_attention import padded_length

SPREAD = (
    "spread the policy over more GPUs (trainer=fsdp trainer.devices= trainer.num_nodes=), or keep "
    "it in host memory (trainer.strategy.cpu_offload=true), or train adapters (docs/scale.md)"
)
SMALLER = (
    "choose a smaller model=, or train adapters (model/lora=default), or take a machine with more "
    "memory"
)


def training_rows(plan: PlannedRun) -> list[MemoryRow]:
    """The policy's pass. That of a critic, at another time, is smaller: it makes no logits."""
    tokens = max(plan.tokens_per_micro_batch, plan.longest)
    fewer = "lower module.tokens_per_micro_batch"
    if tokens == plan.longest:
        fewer = "lower the longest sequence (episode.max_context_tokens, module.max_tokens)"
    given = Pass(
        tokens=padded_length(tokens) if plan.packed else tokens,
        longest=plan.longest,
        dtype=plan.compute_dtype,
        residual=plan.residual_dtype,
        packed=plan.packed,
    )
    checkpointing = plan.gradient_checkpointing
    gathered, activations = (
        _gathered_row(plan),
        kept_bytes(plan.shape, given, checkpointing=checkpointing),
    )
    # Never at the same time: logits, then one layer after the other, then the root's gradients.
    # Optimizers of torch take as much again as the weights on a GPU (`foreach`), of which the
    # space of activations holds a part; on a CPU they go parameter by parameter.
    at_once = not (plan.cpu_offload or plan.on_cpu)
    update = count(plan.model, trained=True) * 4 // plan.shards if at_once else 0
    name, size, remedy = max(
        (
            "a chunk of logits",
            logits_bytes(plan.shape, min(plan.logprob_chunk_tokens, tokens)),
            "lower module.logprob_chunk_tokens",
        ),
        (
            "a layer's backward pass",
            layer_backward_bytes(plan.shape, given, checkpointing=checkpointing),
            fewer,
        ),
        (
            "the head's gradients",
            _root(plan, plan.model, trained=True) * plan.reduce_dtype.itemsize,
            spread(plan),
        ),
        ("the optimizer's update", update - gathered.training - activations, spread(plan)),
        key=lambda each: each[1],
    )
    kept_remedy = fewer if checkpointing else f"set model.gradient_checkpointing=true, or {fewer}"
    return [
        gathered,
        MemoryRow(
            name="activations",
            training=activations,
            remedy=kept_remedy,
        ),
        MemoryRow(name=name, training=size, remedy=remedy),
    ]


def spread(plan: PlannedRun) -> str:
    """What lowers the memory of weights, gradients and optimizer states."""
    return SMALLER if plan.on_cpu else SPREAD


def _gathered_row(plan: PlannedRun) -> MemoryRow:
    """Weights in the precision they are computed in, and gradients until they are summed.

    FSDP2 holds the root's group (embeddings, final norm, head) and two layers, one of them fetched
    ahead; and of a critic what its pass without gradient has left gathered. Autocast without shards
    holds a copy of everything that is kept in another precision.
    """
    c, layers = plan.compute_dtype.itemsize, decoder_layers(plan.model)
    if not plan.sharded:
        copies = (
            sum(p.numel() for p in plan.model.parameters() if p.dtype != plan.compute_dtype) * c
        )
        sampling = copies if plan.sampler.uses_policy else 0
        return MemoryRow(
            name="weights computed with", sampling=sampling, training=copies, validation=sampling
        )
    largest = max(layers, key=count)
    forward = (_root(plan, plan.model) + 2 * count(largest)) * c
    gathered = forward if plan.reshard_after_forward else count(plan.model) * c
    if plan.critic is not None:
        critic = plan.critic.model
        gathered += (_root(plan, critic) if plan.reshard_after_forward else count(critic)) * c
    summed = count(largest, trained=True) * (c + plan.reduce_dtype.itemsize)
    sampling = forward if plan.sampler.uses_policy else 0
    return MemoryRow(
        name="gathered weights, gradients",
        sampling=sampling,
        training=gathered + _root(plan, plan.model, trained=True) * c + summed,
        validation=sampling,
        remedy=""
        if plan.reshard_after_forward
        else "set trainer.strategy.reshard_after_forward=true",
    )


def _root(plan: PlannedRun, model: nn.Module, *, trained: bool = False) -> int:
    """Numbers of the root's group under FSDP2, else 0."""
    within = sum(count(layer, trained=trained) for layer in decoder_layers(model))
    return count(model, trained=trained) - within if plan.sharded else 0


def count(module: nn.Module, *, trained: bool = False) -> int:
    """Numbers in a module's parameters, or in those that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)
