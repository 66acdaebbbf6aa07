"""Log likelihoods of counts given their non-zeros.

Shapes: B cells, G features, M non-zero counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..data.counts import Batch


def negative_binomial(
    batch: Batch, log_mean_BG: torch.Tensor, log_dispersion_G: torch.Tensor, logspace: bool = True
) -> torch.Tensor:
    """Log likelihood of each cell, B.

    With mean m and inverse dispersion r: lgamma(x + r) - lgamma(r) - lgamma(x + 1) + x log(m / (m + r))
    + r log(r / (m + r)). Where x = 0 only the last term is left, so the others are taken at the non-zeros.

    Parameters
    ----------
    batch
        The counts.
    log_mean_BG
        Log of the mean, log(d_i rho_ij).
    log_dispersion_G
        Log of the inverse dispersion r_j.
    logspace
        Whether m / (m + r) is taken by logits, which is more stable, or by probabilities.
    """
    r_G = log_dispersion_G.exp()
    cell, feature, x = batch.cell_M, batch.feature_M, batch.count_M
    logits_BG = log_mean_BG - log_dispersion_G
    if logspace:
        log_failure_BG = -F.softplus(logits_BG)
        log_success_M = -F.softplus(-logits_BG[cell, feature])
    else:
        mean_BG = log_mean_BG.exp()
        tiny = torch.finfo(mean_BG.dtype).tiny
        success_BG = mean_BG / (mean_BG + r_G)
        log_failure_BG = torch.log1p(-success_BG.clamp(max=1 - torch.finfo(mean_BG.dtype).eps))
        log_success_M = success_BG[cell, feature].clamp(min=tiny).log()
    r_M = r_G[feature]
    at_nonzero_M = torch.lgamma(x + r_M) - torch.lgamma(r_M) - torch.lgamma(x + 1) + x * log_success_M
    dense_B = log_failure_BG @ r_G
    return dense_B.index_add(0, cell, at_nonzero_M)


def multinomial(batch: Batch, log_rho_BG: torch.Tensor) -> torch.Tensor:
    """Log likelihood of each cell's open peaks, B: log Gamma(#open + 1) + the sum of log rho over them."""
    log_p_M = log_rho_BG[batch.cell_M, batch.feature_M]
    coefficient_B = torch.lgamma(batch.depth_B + 1)
    return coefficient_B.index_add(0, batch.cell_M, log_p_M * batch.count_M)
