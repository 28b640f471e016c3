"""Per-token estimates of KL(policy || reference) from the log-probs of sampled tokens.

Which of them can be a loss is decided by their gradient, not by their value. With d = log policy -
log reference and tokens drawn from the policy, the expected gradients are:

- k1: zero. It estimates the KL without bias, but minimising it moves nothing on average.
- k2: the gradient of KL(policy || reference).
- k3: the gradient of KL(reference || policy), which has the same minimum.
- abs: that of the mean |d|, a sign per token; robust, no KL.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from zerosearch.core.errors import InputError

KLKind = Literal["k1", "k2", "k3", "abs"]

# From this gap on (reference more likely than the policy by exp(10) = 22026) k3 goes on as its
# tangent. A clamp would be finite too, but has gradient 0 exactly where the pull is needed most.
K3_TANGENT_GAP = 10.0


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind) -> Tensor:
    """Estimate the KL divergence of each sampled token.

    With d = logprobs - ref_logprobs: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d, abs = |d|.
    Source: J. Schulman, "Approximating KL divergence", 2020 (joschu.net/blog/kl-approx.html).

    For d < -10 the exponential of k3 is continued by its tangent, so that value and gradient are
    finite for any finite input; elsewhere all are exact.

    Args:
        logprobs: policy log-probs of the sampled tokens, any shape; carries the gradient.
        ref_logprobs: reference log-probs of the same tokens, same shape; taken as a constant.
        kind: "k1", "k2", "k3" or "abs".

    Returns:
        Estimates in the same shape, at least float32.

    Raises:
        InputError: shapes differ, or `kind` is unknown.
    """
    if logprobs.shape != ref_logprobs.shape:
        raise InputError(
            f"ref_logprobs has shape {tuple(ref_logprobs.shape)}, logprobs "
            f"{tuple(logprobs.shape)}: pass one reference log-prob per token"
        )
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    gap = logprobs.to(dtype) - ref_logprobs.detach().to(dtype)
    match kind:
        case "k1":
            return gap
        case "k2":
            return gap.square() / 2
        case "k3":
            excess = torch.relu(-gap - K3_TANGENT_GAP)
            capped = (-gap).clamp(max=K3_TANGENT_GAP)
            return torch.expm1(capped) + math.exp(K3_TANGENT_GAP) * excess + gap
        case "abs":
            return gap.abs()
    raise InputError(f"kind={kind!r} is unknown: use one of k1, k2, k3, abs")
