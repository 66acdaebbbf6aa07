"""Log likelihoods of counts, with their gradients, in as few passes over cells by features as there can be.

What is needed of log rho is x W + b up to a constant per cell. The functions here go from (x, W, b) to the sum of the
log likelihoods and to its gradients for x, W and b at once, some cells at a time, so that no array of cells by
features outlives the processor's cache, and nothing transcendental is computed twice. The derivatives are written
out below; tests hold them against finite differences and against Pyro.

Shapes: B cells, G features, J inputs of the linear map, M non-zero counts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..data.counts import Batch
from ..nn.decoder import Linear
from ..nn.gradients import with_gradients

CHUNK = 2**19  # numbers of cells by features handled at once on a CPU
SMALL_COUNTS = 8  # counts up to this take no log-gamma of their own


def negative_binomial(
    batch: Batch, profile: Linear, log_depth_B: torch.Tensor, log_dispersion_G: torch.Tensor, logspace: bool = True
) -> torch.Tensor:
    """Log likelihood of all counts of the minibatch.

    With mean m = d_i rho_ij and inverse dispersion r: lgamma(x + r) - lgamma(r) - lgamma(x + 1) + x log(m / (m + r))
    - r log(1 + m / r). Where x = 0 only the last term is left, so the others are taken at the non-zeros.

    Parameters
    ----------
    batch
        The counts.
    profile
        log rho, up to a constant of each cell.
    log_depth_B
        Log of the cells' read depths d_i.
    log_dispersion_G
        Log of the inverse dispersions r_j.
    logspace
        Whether, at the non-zeros, m / (m + r) is taken by logits, which is more stable, or by probabilities.
    """
    with_gradient = torch.is_grad_enabled()
    with torch.no_grad():
        r_G, depth_B = log_dispersion_G.exp(), log_depth_B.exp()
        inverse_G = 1 / r_G
        total, by_dispersion_G = _count_terms(batch, log_dispersion_G, with_gradient)
        by_depth_B = torch.empty_like(depth_B)
        gradients = _Gradients(profile) if with_gradient else None
        for cells, logits_BG in _chunks(profile):
            x_BG = batch.counts_BG[cells]
            rho_BG, log_denominator_B = _softmax(logits_BG)
            odds_BG = (rho_BG * depth_B[cells, None]).mul_(inverse_G)  # m / r
            log1p_odds_BG = odds_BG.log1p()
            # x log(m / (m + r)), where log m = logits + something of the cell
            if logspace:
                shift_B = log_depth_B[cells] - log_denominator_B
                total += _dot(x_BG, logits_BG) + torch.dot(batch.depth_B[cells], shift_B) - _dot(x_BG, log1p_odds_BG)
                total -= torch.dot(x_BG.sum(0), log_dispersion_G)
            else:
                success_BG = (odds_BG / (odds_BG + 1)).clamp_(min=torch.finfo(odds_BG.dtype).tiny)
                total += torch.xlogy(x_BG, success_BG).sum()
            column_G = log1p_odds_BG.sum(0)
            total -= torch.dot(r_G, column_G)
            if gradients is None:
                continue
            # by log m: x - (x + r) m / (m + r)
            by_log_mean_BG = torch.addcdiv(x_BG, (x_BG + r_G).mul_(odds_BG), odds_BG + 1, value=-1)
            by_depth_B[cells] = by_log_mean_BG.sum(1)
            by_dispersion_G -= r_G * column_G + by_log_mean_BG.sum(0)
            gradients.add(cells, by_log_mean_BG.addcmul_(rho_BG, by_depth_B[cells, None], value=-1))
    if gradients is None:
        return total
    own = (log_depth_B, by_depth_B), (log_dispersion_G, by_dispersion_G)
    return with_gradients(total, *gradients.all(), *own)


def multinomial(batch: Batch, profile: Linear) -> torch.Tensor:
    """Log likelihood of all open peaks: of each cell log Gamma(#open + 1) + the sum of log rho over them."""
    with_gradient = torch.is_grad_enabled()
    with torch.no_grad():
        total = torch.lgamma(batch.depth_B + 1).sum()
        gradients = _Gradients(profile) if with_gradient else None
        for cells, logits_BG in _chunks(profile):
            x_BG, depth_B = batch.counts_BG[cells], batch.depth_B[cells]
            rho_BG, log_denominator_B = _softmax(logits_BG)
            total += _dot(x_BG, logits_BG) - torch.dot(depth_B, log_denominator_B)
            if gradients is not None:
                gradients.add(cells, torch.addcmul(x_BG, rho_BG, depth_B[:, None], value=-1, out=rho_BG))
    return total if gradients is None else with_gradients(total, *gradients.all())


class _Gradients:
    """Gradients for a linear map and what it is applied to, gathered over chunks."""

    def __init__(self, profile: Linear) -> None:
        self.profile = profile
        self.x_BJ = torch.empty_like(profile.x_BJ)
        self.weight_JG, self.bias_G = torch.zeros_like(profile.weight_JG), torch.zeros_like(profile.bias_G)
        self.rest_BG = None if profile.rest_BG is None else torch.empty_like(profile.rest_BG)

    def add(self, cells: slice, by_logits: torch.Tensor) -> None:
        torch.mm(by_logits, self.profile.weight_JG.T, out=self.x_BJ[cells])
        self.weight_JG.addmm_(self.profile.x_BJ[cells].T, by_logits)
        self.bias_G += by_logits.sum(0)
        if self.rest_BG is not None:
            self.rest_BG[cells] = by_logits

    def all(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for t, by_t in zip(self.profile, (self.x_BJ, self.weight_JG, self.bias_G, self.rest_BG), strict=True):
            if t is not None and by_t is not None:
                yield t, by_t


def _chunks(profile: Linear) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield which cells, and their logits."""
    x_BJ, weight_JG, bias_G, rest_BG = profile
    n = len(x_BJ)
    size = max(1, CHUNK // len(bias_G)) if x_BJ.device.type == "cpu" else n
    for start in range(0, n, size):
        cells = slice(start, start + size)
        logits = torch.addmm(bias_G, x_BJ[cells], weight_JG)
        if rest_BG is not None:
            logits += rest_BG[cells]
        yield cells, logits


def _dot(a_BG: torch.Tensor, b_BG: torch.Tensor) -> torch.Tensor:
    return torch.dot(a_BG.reshape(-1), b_BG.reshape(-1))


def _softmax(logits_BG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the softmax of each row and the log of its denominator, with one exponential per number."""
    highest_B = logits_BG.amax(1)
    rho_BG = logits_BG.softmax(1)
    return rho_BG, highest_B - rho_BG.amax(1).log()


def _count_terms(
    batch: Batch, log_dispersion_G: torch.Tensor, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum lgamma(x + r) - lgamma(r) - lgamma(x + 1) over the non-zeros; and its gradient for log r.

    lgamma(x + r) - lgamma(r) = log r + log(r + 1) + ... + log(r + x - 1). The non-zeros of each feature are counted by
    x, and what is left of large counts starts at r + SMALL_COUNTS.
    """
    r_G = log_dispersion_G.exp()
    x, feature = batch.count_M, batch.feature_M
    if x is None or feature is None or r_G.device.type != "cpu":  # a GPU takes log-gammas faster than it counts
        y_BG = batch.counts_BG
        total = (torch.lgamma(y_BG + r_G) - torch.lgamma(r_G) - torch.lgamma(y_BG + 1)).sum()
        return total, (torch.digamma(y_BG + r_G) - torch.digamma(r_G)).sum(0) * r_G
    G, S = len(r_G), SMALL_COUNTS
    counted = torch.bincount(x.clamp(max=S).long().mul_(G).add_(feature), minlength=(S + 1) * G)
    with_x_SG = counted.view(S + 1, G)[1:].to(r_G.dtype)  # how many non-zeros are 1, 2, ..., at least S
    above_SG = r_G.new_ones(S, S).triu_() @ with_x_SG
    steps_SG = r_G + torch.arange(S, dtype=r_G.dtype)[:, None]
    factorials_S = torch.lgamma(torch.arange(2, S + 2, dtype=r_G.dtype))
    total = (above_SG * steps_SG.log()).sum() - torch.dot(with_x_SG.sum(1), factorials_S)
    slope_G = (above_SG / steps_SG).sum(0)
    large = torch.nonzero(x > S)[:, 0]
    if len(large):
        x, feature = x[large], feature[large]
        from_M = r_G[feature] + S
        total += (torch.lgamma(from_M + (x - S)) - torch.lgamma(from_M) - torch.lgamma(x + 1)).sum()
        total += len(large) * factorials_S[-1]
        if with_gradient:
            slope_G.index_add_(0, feature, torch.digamma(from_M + (x - S)) - torch.digamma(from_M))
    return total, slope_G * r_G
