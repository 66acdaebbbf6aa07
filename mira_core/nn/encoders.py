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
    TINY = 1e-20

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
        dtype = y_BE.dtype
        m_B1 = (batch.depth_B if self.seen.all else y_BE.sum(1))[:, None]
        least = torch.finfo(dtype).eps / 2 - 1  # stands for -1 where a logarithm would be infinite, and times zero
        w_BE = y_BE / m_B1.clamp(min=1)
        # Both logarithms by how far w = y / m is from pi, so that their rounding errors cancel as they do:
        # y / mu = 1 + (w - pi) / pi and (m - y) / (m - mu) = 1 - (w - pi) / (1 - pi).
        off_BE = w_BE - self.share_E.to(dtype)
        seen_BE = (off_BE * (1 / self.share_E.clamp(min=self.TINY)).to(dtype)).clamp_(min=least).log1p_()
        rest_BE = (off_BE * (-1 / (1 - self.share_E).clamp(min=self.TINY)).to(dtype)).clamp_(min=least).log1p_()
        # the deviance over 2 m
        summed_BE = torch.addcmul(rest_BE, rest_BE, w_BE, value=-1).addcmul_(w_BE, seen_BE)
        root_BE = F.threshold(summed_BE, self.TINY, 0, inplace=True).sqrt_()
        r_BE = root_BE.mul_((2 * m_B1).sqrt_().mul_(self.scale.to(dtype))).clamp_(max=self.CLIP)
        return r_BE.copysign_(off_BE)


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
