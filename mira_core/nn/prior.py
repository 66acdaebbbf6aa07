"""The prior of the topics: a Dirichlet with learned pseudocounts, in the softmax basis."""

from __future__ import annotations

import math

import torch
from torch import nn


class DirichletPrior(nn.Module):
    """Pseudocounts a_k of the Dirichlet prior and their posterior.

    a_k ~ Gamma(2, 2 K / I) with I the initial pseudocounts, so that E[a_k] = I / K; the posterior is log-normal
    and starts at the prior's mean and variance.
    """

    SHAPE = 2.0

    def __init__(self, num_topics: int, initial_pseudocounts: float) -> None:
        super().__init__()
        mean = initial_pseudocounts / num_topics
        self.rate = self.SHAPE / mean
        variance_ratio = 1 / self.SHAPE  # variance over squared mean, of this Gamma
        s2 = math.log1p(variance_ratio)
        self.loc_K = nn.Parameter(torch.full((num_topics,), math.log(mean) - s2 / 2))
        self.log_scale_K = nn.Parameter(torch.full((num_topics,), 0.5 * math.log(s2)))

    @property
    def scale_K(self) -> torch.Tensor:
        """Scale of the log-normal posterior."""
        return self.log_scale_K.exp()


def laplace_approximation(a_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the softmax-basis normal that stands for Dirichlet(a).

    mu_k = log a_k - mean_j log a_j;  sigma_k^2 = (1 / a_k)(1 - 2 / K) + (1 / K^2) sum_j 1 / a_j
    (Srivastava & Sutton, ICLR 2017).
    """
    K = a_K.shape[-1]
    log_a, inverse = a_K.log(), 1 / a_K
    mu = log_a - log_a.mean(-1, keepdim=True)
    variance = inverse * (1 - 2 / K) + inverse.sum(-1, keepdim=True) / K**2
    return mu, variance.sqrt()
