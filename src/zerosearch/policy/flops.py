"""Floating-point operations of a decoder; a multiplication with an addition counts as two.

The backward pass needs as many as the forward pass for the gradients of activations, and as many
again for those of the weights that are trained (Chowdhery et al., arXiv 2204.02311, appendix B,
which takes the head on all tokens and attention to later tokens too).

Legend: h hidden size, f size of the MLP, a = heads x head size, k = key heads x head size.
"""

from __future__ import annotations

from collections.abc import Sequence

from zerosearch.policy.activation_memory import Shape


def forward_flops(weights: float, queries: float, tokens: float, pairs: float) -> float:
    """Operations of a forward pass. Embeddings, norms and softmax are left out.

    Args:
        weights: numbers of the matrices that each token is multiplied with.
        queries: numbers of the queries of one token in all of these layers.
        tokens: that pass.
        pairs: of a token and one that it attends to.
    """
    return 2 * weights * tokens + 4 * queries * pairs


def training_flops(forward: float, trained: float = 1.0) -> float:
    """Operations of a forward and backward pass.

    Args:
        forward: those of the forward pass.
        trained: share of the weights that get gradients.
    """
    return (2 + trained) * forward


def step_flops(
    shape: Shape, lengths: Sequence[int], predicted: int, *, recomputed: bool = False
) -> float:
    """Operations of a forward and backward pass over known sequences, all weights trained.

    What is counted is what the loss needs: no padding, attention to earlier tokens of the same
    sequence alone, the head on predicted tokens alone.

    Args:
        shape: of the model.
        lengths: tokens of each sequence.
        predicted: tokens of all sequences whose log-probs are in the loss.
        recomputed: count what gradient checkpointing computes again, too: the forward pass up to
            the last product of each layer, whose result no gradient needs.
    """
    query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    weights = shape.layers * shape.hidden * (2 * query + 2 * key + 3 * shape.mlp)
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    layers = forward_flops(weights, shape.layers * query, sum(lengths), pairs)
    head = forward_flops(shape.hidden * shape.vocabulary, 0, predicted, 0)
    last = forward_flops(shape.layers * shape.hidden * shape.mlp, 0, sum(lengths), 0)
    return training_flops(layers + head) + (layers + head - last if recomputed else 0)
