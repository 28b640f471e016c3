"""Floating-point operations of a training step, and the share of a GPU's peak that they are.

Legend: h hidden size, f size of the MLP, a = heads x head size, k = key heads x head size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from zerosearch.policy.activation_memory import Shape

# Dense bfloat16 operations a second with float32 sums, from NVIDIA's data sheets; those of sparse
# matrices, which the sheets print, are twice as many. The first name that fits a card counts.
PEAK_FLOPS = {
    r"B200": 2.25e15,
    r"GH200|H200|H100(?!.*(PCIe|NVL))": 989e12,
    r"H100 PCIe": 756e12,
    r"H100 NVL": 835e12,
    r"H20\b": 148e12,
    r"A100": 312e12,
    r"L40S": 362e12,
    r"RTX 4090": 165e12,
}


def peak_flops(card: str) -> float | None:
    """Peak operations a second of a card by the name that CUDA gives it; None: not in the table."""
    return next((peak for name, peak in PEAK_FLOPS.items() if re.search(name, card)), None)


def step_flops(
    shape: Shape, lengths: Sequence[int], predicted: int, *, recomputed: bool = False
) -> int:
    """Operations of a forward and backward pass; a multiplication with an addition counts as two.

    What is counted is what the loss needs: no padding, attention to earlier tokens of the same
    sequence alone, the head on predicted tokens alone. The backward pass needs twice the forward
    pass (Chowdhery et al., arXiv 2204.02311, appendix B, which takes the head on all tokens and
    attention to later tokens too). Embeddings, norms and softmax are left out.

    Args:
        shape: of the model, all of whose weights are trained.
        lengths: tokens of each sequence.
        predicted: tokens of all sequences whose log-probs are in the loss.
        recomputed: count what gradient checkpointing computes again, too: the forward pass up to
            the last product of each layer, whose result no gradient needs.
    """
    query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    weights = shape.hidden * (2 * query + 2 * key + 3 * shape.mlp)  # of a layer
    pairs = sum(n * (n + 1) // 2 for n in lengths)  # of a token and one that it sees
    layers = shape.layers * (2 * weights * sum(lengths) + 4 * query * pairs)
    head = 2 * shape.hidden * shape.vocabulary * predicted
    again = layers + head - shape.layers * 2 * shape.hidden * shape.mlp * sum(lengths)
    return 3 * (layers + head) + (again if recomputed else 0)
