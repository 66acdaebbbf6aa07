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


def positions(endogenous: np.ndarray) -> torch.Tensor:
    """Return where each of the G features stands among the encoder's; -1 for those it does not see."""
    return torch.from_numpy(np.where(endogenous, np.cumsum(endogenous) - 1, -1))


class DevianceResiduals(nn.Module):
    """Signed deviance residuals of counts against the training cells' pooled profile, times a scale.

    At a count of zero the residual is -sqrt(2 m_i log(1 / (1 - pi_j))), an outer product; only the non-zeros
    need more.

    Parameters
    ----------
    endogenous
        Which of the G features the encoder sees.
    statistics
        Of the training cells.
    """

    CLIP = 10.0

    position_G: torch.Tensor
    share_E: torch.Tensor
    at_zero_E: torch.Tensor
    scale: torch.Tensor

    def __init__(self, endogenous: np.ndarray, statistics: Statistics) -> None:
        super().__init__()
        share = torch.tensor(statistics.endogenous_share)
        self.register_buffer("position_G", positions(endogenous))
        self.register_buffer("share_E", share)
        # log(1 / (1 - pi)) in double precision: pi may be tiny
        self.register_buffer("at_zero_E", torch.sqrt(-2 * torch.log1p(-share.clamp(max=1 - 1e-12))))
        self.register_buffer("scale", torch.tensor((1000 / statistics.endogenous_depth) ** 0.5, dtype=torch.float64))
        self.n_features = int(endogenous.sum())

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the residuals, B x E."""
        dtype = batch.count_M.dtype
        at = self.position_G[batch.feature_M]
        seen = at >= 0
        cell, at, y = batch.cell_M[seen], at[seen], batch.count_M[seen]
        m_B = torch.zeros_like(batch.depth_B).index_add_(0, cell, y)
        r_BE = -torch.outer(m_B.sqrt(), (self.at_zero_E * self.scale).to(dtype)).clamp_(max=self.CLIP)
        m = m_B[cell]
        mu = m * self.share_E.to(dtype)[at]
        rest = m - y
        # (m - y) log((m - y) / (m - mu)) by log1p, since the ratio is close to one
        other = torch.where(rest > 0, rest * torch.log1p((mu - y) / (m - mu)), 0.0)
        deviance = 2 * (y * torch.log(y / mu) + other)
        r = torch.sign(y - mu) * deviance.clamp_(min=0).sqrt() * self.scale.to(dtype)
        r_BE[cell, at] = torch.nan_to_num(r, nan=0.0).clamp_(-self.CLIP, self.CLIP)
        return r_BE


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
