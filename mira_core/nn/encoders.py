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
    Over the root of the cell's depth m they are a function of y / m and the feature; so all zeros of a feature share
    one number, and only the non-zeros take logarithms.

    Parameters
    ----------
    endogenous
        Which of the G features the encoder sees.
    statistics
        Of the training cells.
    """

    CLIP = 10.0
    TINY = 1e-20

    column_G: torch.Tensor
    share_E: torch.Tensor
    at_zero_E: torch.Tensor
    scale: torch.Tensor

    def __init__(self, endogenous: np.ndarray, statistics: Statistics) -> None:
        super().__init__()
        self.seen = SeenFeatures(endogenous)
        share_E = torch.tensor(statistics.endogenous_share)
        self.register_buffer("share_E", share_E)
        self.register_buffer("scale", torch.tensor((1000 / statistics.endogenous_depth) ** 0.5, dtype=torch.float64))
        self.register_buffer("at_zero_E", self._over_root_depth(torch.zeros_like(share_E), share_E), persistent=False)
        self.n_features = int(endogenous.sum())
        column_G = np.where(endogenous, np.cumsum(endogenous) - 1, -1)
        self.register_buffer("column_G", torch.from_numpy(column_G), persistent=False)

    def _over_root_depth(self, w: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Return the residuals over the root of twice the depth, for shares of the depth and of the profile."""
        least = torch.finfo(w.dtype).eps / 2 - 1  # stands for -1 where a logarithm would be infinite, and times zero
        # Both logarithms by how far w = y / m is from pi, so that their rounding errors cancel as they do:
        # y / mu = 1 + (w - pi) / pi and (m - y) / (m - mu) = 1 - (w - pi) / (1 - pi).
        off = w - share
        seen = (off / share.clamp(min=self.TINY)).clamp_(min=least).log1p_()
        rest = (off / (share - 1).clamp(max=-self.TINY)).clamp_(min=least).log1p_()
        deviance = torch.addcmul(rest, rest, w, value=-1).addcmul_(w, seen)
        return F.threshold(deviance, self.TINY, 0, inplace=True).sqrt_().copysign_(off)

    @torch.no_grad()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the residuals, B x E."""
        dense = batch.count_M is None or batch.count_M.device.type != "cpu"  # a GPU rather computes than looks up
        return (self._dense(batch) if dense else self._sparse(batch)).clamp_(-self.CLIP, self.CLIP)

    def _dense(self, batch: Batch) -> torch.Tensor:
        y_BE = self.seen(batch.counts_BG)
        m_B1 = (batch.depth_B if self.seen.all else y_BE.sum(1))[:, None]
        r_BE = self._over_root_depth(y_BE / m_B1.clamp(min=1), self.share_E.to(y_BE.dtype))
        return r_BE.mul_(self._root_depth(m_B1))

    def _sparse(self, batch: Batch) -> torch.Tensor:
        y_M, cell_M, feature_M, place_M, m_B = (
            batch.count_M,
            batch.cell_M,
            batch.feature_M,
            batch.place_M,
            batch.depth_B,
        )
        assert y_M is not None
        assert feature_M is not None
        if not self.seen.all:
            column_M = self.column_G.index_select(0, feature_M)
            at = torch.nonzero(column_M >= 0)[:, 0]
            y_M, cell_M, feature_M = (t.index_select(0, at) for t in (y_M, cell_M, column_M))
            place_M = cell_M * self.n_features + feature_M
            m_B = torch.zeros_like(m_B).index_add_(0, cell_M, y_M)
        root_B = self._root_depth(m_B)
        r_BE = torch.outer(root_B, self.at_zero_E.to(y_M.dtype))
        share_M = self.share_E.to(y_M.dtype).index_select(0, feature_M)
        r_M = self._over_root_depth(y_M / m_B.index_select(0, cell_M), share_M).mul_(root_B.index_select(0, cell_M))
        r_BE.view(-1).scatter_(0, place_M, r_M)
        return r_BE

    def _root_depth(self, m: torch.Tensor) -> torch.Tensor:
        return (2 * m).sqrt_().mul_(self.scale.to(m.dtype))


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
        loc_BK, scale_BK, depth_loc_B1, depth_scale_B1 = self.layers(x).split(
            [self.num_topics, self.num_topics, 1, 1], 1
        )
        return Posterior(
            theta_loc_BK=loc_BK,
            theta_scale_BK=F.softplus(scale_BK),
            depth_loc_B=torch.add(log_depth_B, depth_loc_B1[:, 0], alpha=0.1),
            depth_scale_B=0.1 * F.softplus(depth_scale_B1[:, 0]),
        )
