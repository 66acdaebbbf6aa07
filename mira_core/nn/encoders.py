"""q(theta | x) and q(d | x): from counts to the posterior of a cell's topics and read depth.

Shapes: B cells, G modelled features, E encoder features, K topics, C covariate columns, F extra features,
M non-zero counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.counts import Batch
from ..data.statistics import Statistics
from .blocks import encoder_stack


class Posterior(NamedTuple):
    """Parameters of the guide's distributions of one minibatch.

    Attributes
    ----------
    theta_loc_BK, theta_scale_BK
        Normal distribution of the topics' logits.
    depth_loc_B, depth_scale_B
        Log-normal distribution of the read depth; None in models of accessibility, which have none.
    """

    theta_loc_BK: torch.Tensor
    theta_scale_BK: torch.Tensor
    depth_loc_B: torch.Tensor | None = None
    depth_scale_B: torch.Tensor | None = None


class SeenFeatures(nn.Module):
    """The counts of the E of the G features that the encoder sees."""

    columns_E: torch.Tensor

    def __init__(self, endogenous: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("columns_E", torch.from_numpy(np.flatnonzero(endogenous)), persistent=False)
        self.all = bool(endogenous.all())

    def forward(self, counts_BG: torch.Tensor) -> torch.Tensor:
        """Return the counts, B x E; without a copy where all are seen."""
        return counts_BG if self.all else counts_BG.index_select(1, self.columns_E)


class DevianceResiduals(nn.Module):
    """Signed deviance residuals of counts against the training cells' pooled profile, times a scale.

    With mu = m pi, the sign of y - mu times the root of 2 (y log(y / mu) + (m - y) log((m - y) / (m - mu))).

    Parameters
    ----------
    endogenous
        Which of the G features the encoder sees.
    statistics
        Of the training cells.
    """

    CLIP = 10.0
    TINY = 1e-20  # stands for zero where a logarithm or a root of it would take a processor's slow path

    share_E: torch.Tensor
    scale: torch.Tensor

    def __init__(self, endogenous: np.ndarray, statistics: Statistics) -> None:
        super().__init__()
        self.seen = SeenFeatures(endogenous)
        self.register_buffer("share_E", torch.tensor(statistics.endogenous_share))
        self.register_buffer("scale", torch.tensor((1000 / statistics.endogenous_depth) ** 0.5, dtype=torch.float64))
        self.n_features = int(endogenous.sum())

    @torch.no_grad()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the residuals, B x E."""
        y_BE = self.seen(batch.counts_BG)
        m_B1 = (batch.depth_B if self.seen.all else y_BE.sum(1))[:, None]
        mu_BE = m_B1 * self.share_E.to(y_BE.dtype)
        ratio_BE = y_BE / mu_BE.clamp(min=self.TINY)
        # log((m - y) / (m - mu)) by log1p, since the ratio is close to one
        nearly_minus_one = torch.finfo(y_BE.dtype).eps / 2 - 1
        other_BE = (mu_BE - y_BE).div_((m_B1 - mu_BE).clamp_(min=self.TINY)).clamp_(min=nearly_minus_one)
        other_BE = other_BE.log1p_().mul_(torch.sub(m_B1, y_BE, out=mu_BE))
        deviance_BE = torch.log(ratio_BE.clamp(min=self.TINY), out=mu_BE).mul_(y_BE).add_(other_BE).mul_(2)
        root_BE = F.threshold_(deviance_BE.clamp_(min=self.TINY).sqrt_(), 2 * self.TINY**0.5, 0)
        return root_BE.mul_(self.scale.to(y_BE.dtype)).clamp_(max=self.CLIP).copysign_(ratio_BE.sub_(1))


class ExpressionEncoder(nn.Module):
    """Residuals, log depth, covariates and extra features, through blocks, to the posterior.

    The read depth is told by its residual: its posterior starts at the observed depth, within a tenth. Started
    at random instead, small data sets explain the misfit by the dispersions, which then never recover.
    `n_told` counts the covariates and extra features.
    """

    def __init__(
        self,
        residuals: DevianceResiduals,
        num_topics: int,
        hidden: int,
        num_layers: int,
        embedding_size: int | None,
        dropout: float,
        n_told: int = 0,
    ) -> None:
        super().__init__()
        self.num_topics = num_topics
        self.residuals = residuals
        self.layers = encoder_stack(
            residuals.n_features + 1 + n_told,
            embedding_size or hidden,
            hidden,
            2 * num_topics + 2,
            num_layers,
            dropout,
        )

    def forward(self, batch: Batch) -> Posterior:
        """Encode a minibatch."""
        log_depth_B = batch.depth_B.log()
        x = torch.cat([self.residuals(batch), log_depth_B[:, None], batch.covariates_BC, batch.extra_BF], dim=1)
        out = self.layers(x)
        K = self.num_topics
        return Posterior(
            theta_loc_BK=out[:, :K],
            theta_scale_BK=F.softplus(out[:, K : 2 * K]),
            depth_loc_B=log_depth_B + 0.1 * out[:, 2 * K],
            depth_scale_B=0.1 * F.softplus(out[:, 2 * K + 1]),
        )
