"""Tokens from logits: vectorised over rows, with each row's own randomness.

Randomness comes from position: all the uniform numbers of a completion are drawn from its seed
when it is submitted, so a trajectory's draws do not depend on who shares its batch.

Shape suffixes: `_B` rows of the batch, `_V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zerosearch.generation.generator import CompletionRequest, Sampling

_LARGE_VOCABULARY, _BLOCK = 16_384, 256


@dataclass(kw_only=True, slots=True, frozen=True)
class RowSampling:
    """The sampling settings of all rows as tensors; None where no row needs the setting."""

    all_greedy: bool
    greedy_B: torch.Tensor | None
    temperature_B: torch.Tensor | None
    top_p_B: torch.Tensor | None
    top_k_B: torch.Tensor | None


def draw_uniforms(request: CompletionRequest) -> list[float]:
    """The uniform numbers in [0, 1) of one completion, [max_new_tokens]; none when greedy."""
    if request.sampling.temperature == 0:
        return [0.0] * request.max_new_tokens
    source = torch.Generator().manual_seed(request.seed)
    return torch.rand(request.max_new_tokens, generator=source, dtype=torch.float64).tolist()


def stack_sampling(samplings: Sequence[Sampling], device: torch.device) -> RowSampling:
    """Collect the settings of the rows, in order."""

    def column(values: list, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    greedy = [s.temperature == 0 for s in samplings]
    filters = [s for s, is_greedy in zip(samplings, greedy, strict=True) if not is_greedy]
    return RowSampling(
        all_greedy=all(greedy),
        greedy_B=column(greedy, torch.bool) if any(greedy) else None,
        temperature_B=column([s.temperature or 1.0 for s in samplings], torch.float32)
        if any(s.temperature not in (0, 1) for s in samplings)
        else None,
        top_p_B=column([s.top_p for s in samplings], torch.float64)
        if any(s.top_p < 1 for s in filters)
        else None,
        top_k_B=column([s.top_k for s in samplings], torch.int64)
        if any(s.top_k > 0 for s in filters)
        else None,
    )


def filter_logits(
    logits_BV: torch.Tensor, top_k_B: torch.Tensor | None, top_p_B: torch.Tensor | None
) -> torch.Tensor:
    """Set to -inf what lies outside the k likeliest tokens or outside the nucleus.

    Top-k comes first and the nucleus is taken of what it left. The nucleus is the smallest set of
    likeliest tokens whose probability reaches p; ties go to the smaller id, so exactly k stay.

    Args:
        logits_BV: float [B, V].
        top_k_B: integers [B], 0 is off; None where no row uses it.
        top_p_B: floats [B] in (0, 1], 1 is off; None where no row uses it.

    Returns:
        [B, V]; at least one token of every row stays.
    """
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    drop_BV = torch.zeros_like(sorted_BV, dtype=torch.bool)
    if top_k_B is not None:
        rank_V = torch.arange(logits_BV.shape[-1], device=logits_BV.device)
        drop_BV |= (top_k_B > 0)[:, None] & (rank_V >= top_k_B[:, None])
    if top_p_B is not None:
        kept_BV = sorted_BV.masked_fill(drop_BV, -torch.inf)
        mass_BV = kept_BV.softmax(dim=-1, dtype=torch.float64)
        before_BV = mass_BV.cumsum(dim=-1) - mass_BV
        drop_BV |= (top_p_B < 1)[:, None] & (before_BV >= top_p_B[:, None])
        drop_BV[:, 0] = False
    return logits_BV.masked_fill(drop_BV.scatter(-1, order_BV, drop_BV), -torch.inf)


def invert_cdf(probs_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """The token in whose share of [0, 1) each uniform number falls.

    The running sum is in float64 and is scaled by its own total, and should rounding still point
    at a token of probability zero (parallel sums are not monotone) the likeliest token is taken.

    Of a large vocabulary the sums of blocks come first, then those within one block.

    Args:
        probs_BV: probabilities [B, V].
        uniforms_B: float64 [B] in [0, 1).

    Returns:
        ids [B], each of a probability above zero.
    """
    if probs_BV.shape[-1] >= _LARGE_VOCABULARY:
        return _invert_in_blocks(probs_BV, uniforms_B)
    cdf_BV = probs_BV.cumsum(dim=-1, dtype=torch.float64)
    targets_B1 = uniforms_B[:, None] * cdf_BV[:, -1:]
    ids_B1 = torch.searchsorted(cdf_BV, targets_B1, right=True)
    ids_B1 = ids_B1.clamp_(max=probs_BV.shape[-1] - 1)
    return _possible(probs_BV, ids_B1)


def _invert_in_blocks(probs_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """As `invert_cdf`; a running sum over a whole vocabulary is slow on a CPU.

    Adds `_N` blocks of `_K` tokens to the legend.
    """
    padding = -probs_BV.shape[-1] % _BLOCK
    probs_BNK = torch.nn.functional.pad(probs_BV, (0, padding)).unflatten(-1, (-1, _BLOCK))
    sums_BN = probs_BNK.sum(dim=-1, dtype=torch.float64)
    cdf_BN = sums_BN.cumsum(dim=-1)
    targets_B1 = uniforms_B[:, None] * cdf_BN[:, -1:]
    blocks_B1 = torch.searchsorted(cdf_BN, targets_B1, right=True).clamp_(max=cdf_BN.shape[-1] - 1)
    targets_B1 = targets_B1 - (cdf_BN - sums_BN).gather(-1, blocks_B1)
    rows = torch.arange(len(probs_BV), device=probs_BV.device)
    cdf_BK = probs_BNK[rows, blocks_B1[:, 0]].cumsum(dim=-1, dtype=torch.float64)
    places_B1 = torch.searchsorted(cdf_BK, targets_B1, right=True).clamp_(max=_BLOCK - 1)
    ids_B1 = (blocks_B1 * _BLOCK + places_B1).clamp_(max=probs_BV.shape[-1] - 1)
    return _possible(probs_BV, ids_B1)


def _possible(probs_BV: torch.Tensor, ids_B1: torch.Tensor) -> torch.Tensor:
    """The ids [B], and the likeliest token where one has probability zero."""
    impossible_B1 = probs_BV.gather(-1, ids_B1) <= 0
    return torch.where(impossible_B1, probs_BV.argmax(dim=-1, keepdim=True), ids_B1)[:, 0]


def sample_tokens(
    logits_BV: torch.Tensor, uniforms_B: torch.Tensor, rows: RowSampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample one token per row.

    Args:
        logits_BV: [B, V], any float type.
        uniforms_B: float64 [B] in [0, 1), one fresh number per row.
        rows: settings of the same rows.

    Returns:
        ids [B] and their float32 log-probs [B] under the distribution sampled from (after
        temperature, top-k and top-p); for greedy rows under the plain softmax.
    """
    logits_BV = logits_BV.float()
    if rows.temperature_B is not None:
        logits_BV = logits_BV / rows.temperature_B[:, None]
    greedy_ids_B = logits_BV.argmax(dim=-1) if rows.greedy_B is not None else None
    if not rows.all_greedy and (rows.top_k_B is not None or rows.top_p_B is not None):
        filtered_BV = filter_logits(logits_BV, rows.top_k_B, rows.top_p_B)
        if rows.greedy_B is not None:
            filtered_BV = torch.where(rows.greedy_B[:, None], logits_BV, filtered_BV)
        logits_BV = filtered_BV
    logprobs_BV = logits_BV.log_softmax(dim=-1)
    if rows.all_greedy and greedy_ids_B is not None:
        ids_B = greedy_ids_B
    else:
        ids_B = invert_cdf(logprobs_BV.exp(), uniforms_B)
        if rows.greedy_B is not None and greedy_ids_B is not None:
            ids_B = torch.where(rows.greedy_B, greedy_ids_B, ids_B)
    return ids_B, logprobs_BV.gather(-1, ids_B[:, None])[:, 0]
