"""From a cell's topics, and its technical covariates, to its relative frequencies of features.

Shapes: B cells, C covariate columns, G modelled features, K topics.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..data.statistics import Statistics
from .blocks import block, linear


class Decoder(nn.Module):
    """The biological signal: log rho = log softmax(base + BatchNorm(beta^T theta)).

    `base_G`, the centred log of the training cells' mean profile, is where the decoder starts; what the
    BatchNorm's bias learns comes on top, so that weight decay pulls towards the mean profile and not to a flat one.
    """

    base_G: torch.Tensor

    def __init__(self, num_topics: int, statistics: Statistics) -> None:
        super().__init__()
        base = torch.from_numpy(statistics.mean_profile).log()
        self.register_buffer("base_G", (base - base.mean()).float())
        self.beta = linear(num_topics, len(base))
        self.norm = nn.BatchNorm1d(len(base))

    def signal(self, theta_BK: torch.Tensor, *, aside: bool = False) -> torch.Tensor:
        """Return BatchNorm(beta^T theta), B x G; `aside` leaves the running statistics as they are."""
        x_BG = self.beta(theta_BK)
        return normalise_aside(x_BG, self.norm) if aside else self.norm(x_BG)

    def forward(self, theta_BK: torch.Tensor) -> torch.Tensor:
        """Return log rho without technical effects, B x G."""
        return F.log_softmax(self.base_G + self.signal(theta_BK), dim=1)

    def effects(self) -> torch.Tensor:
        """Return how far a cell of one topic alone is moved from the average cell, in natural-log units, K x G."""
        return self.norm.weight * self._standardised()

    def _standardised(self) -> torch.Tensor:
        n = self.norm
        mean_G, variance_G = n.get_buffer("running_mean"), n.get_buffer("running_var")
        return (self.beta.weight.T - mean_G) / torch.sqrt(variance_G + n.eps)

    @torch.no_grad()
    def activations(self) -> torch.Tensor:
        """Topic-feature activations, K x G: how far each topic moves each feature, in standard deviations.

        sign(weight) * (beta - running_mean) / sqrt(running_var + eps), after MIRA (Lynch et al. 2022).
        """
        return torch.sign(self.norm.weight) * self._standardised()

    @torch.no_grad()
    def topic_distributions(self) -> torch.Tensor:
        """Return each topic's distribution over features, K x G, rows sum to 1."""
        return F.softmax(self.effects() + self.norm.bias + self.base_G, dim=1)


class TechnicalDecoder(nn.Module):
    """The technical signal of CODAL: gamma * BatchNorm(W h([theta, c]) + b), added to the biological one.

    `h` is one block; the BatchNorm has no weights of its own, and gamma starts at zero, so that training starts
    without technical effects. (Lynch et al., Nature Communications 2023.)

    log cosh(gamma) is taken off, so that over two batches of equal size a feature's effect averages to 1 rather than
    its logarithm to 0; otherwise frequencies without technical effects come out too low where effects are strong.
    """

    def __init__(self, num_topics: int, n_covariates: int, n_features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden = block(num_topics + n_covariates, hidden, dropout)
        self.out = linear(hidden, n_features, bias=True)
        self.norm = nn.BatchNorm1d(n_features, affine=False)
        self.gamma_G = nn.Parameter(torch.zeros(n_features))

    def signal(self, theta_BK: torch.Tensor, covariates_BC: torch.Tensor, *, aside: bool = False) -> torch.Tensor:
        """Return the technical effects, B x G; `aside` leaves the running statistics as they are."""
        x_B = torch.cat([theta_BK, covariates_BC], dim=1)
        if aside:
            first, norm, *others = self.hidden
            assert isinstance(norm, nn.BatchNorm1d)
            h = normalise_aside(first(x_B), norm)
            for layer in others:
                h = layer(h)
            return self.gamma_G * normalise_aside(self.out(h), self.norm) - log_cosh(self.gamma_G)
        return self.gamma_G * self.norm(self.out(self.hidden(x_B))) - log_cosh(self.gamma_G)


def log_cosh(x: torch.Tensor) -> torch.Tensor:
    """Return log cosh(x) without overflow."""
    return x + F.softplus(-2 * x) - math.log(2)


def normalise_aside(x: torch.Tensor, norm: nn.BatchNorm1d) -> torch.Tensor:
    """Apply a batch normalisation without a trace in its running statistics."""
    if not norm.training:
        return norm(x)
    return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
