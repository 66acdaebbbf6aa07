"""From a cell's topics to its relative frequencies of features.

Shapes: B cells, G modelled features, K topics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..data.statistics import Statistics
from .blocks import Dropout, linear


class Decoder(nn.Module):
    """log rho = log softmax(base + BatchNorm(beta^T dropout(theta))).

    `base_G`, the centred log of the training cells' mean profile, is where the decoder starts; what the
    BatchNorm's bias learns comes on top, so that weight decay pulls towards the mean profile and not to a flat one.
    """

    base_G: torch.Tensor

    def __init__(self, num_topics: int, statistics: Statistics, dropout: float) -> None:
        super().__init__()
        base = torch.from_numpy(statistics.mean_profile).log()
        self.register_buffer("base_G", (base - base.mean()).float())
        self.dropout = Dropout(dropout)
        self.beta = linear(num_topics, len(base))
        self.norm = nn.BatchNorm1d(len(base))

    def logits(self, theta_BK: torch.Tensor) -> torch.Tensor:
        """Return the unnormalised log frequencies, B x G."""
        return self.base_G + self.norm(self.beta(self.dropout(theta_BK)))

    def forward(self, theta_BK: torch.Tensor) -> torch.Tensor:
        """Return log rho, B x G."""
        return F.log_softmax(self.logits(theta_BK), dim=1)

    @torch.no_grad()
    def activations(self) -> torch.Tensor:
        """Topic-feature activations, K x G: how far each topic moves each feature, in standard deviations.

        sign(weight) * (beta - running_mean) / sqrt(running_var + eps), after MIRA (Lynch et al. 2022).
        """
        n = self.norm
        mean_G, variance_G = n.get_buffer("running_mean"), n.get_buffer("running_var")
        return torch.sign(n.weight) * (self.beta.weight.T - mean_G) / torch.sqrt(variance_G + n.eps)

    @torch.no_grad()
    def topic_distributions(self) -> torch.Tensor:
        """Return each topic's distribution over features, K x G, rows sum to 1."""
        n = self.norm
        return F.softmax(n.weight.abs() * self.activations() + n.bias + self.base_G, dim=1)
