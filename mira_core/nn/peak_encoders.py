"""q(theta | x) for accessibility: from the set of open peaks to the posterior of a cell's topics.

Shapes: B cells, G modelled peaks, E encoder peaks, K topics, R components of the LSI, M open peaks of the minibatch.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.counts import Batch
from ..data.lsi import LSI
from .blocks import Dropout, PeakEmbedding, block, encoder_stack, linear
from .encoders import Posterior, positions


class OpenPeaks(nn.Module):
    """The open encoder peaks of each cell; while training, each is left out with probability `dropout`."""

    position_G: torch.Tensor

    def __init__(self, endogenous: np.ndarray, dropout: float) -> None:
        super().__init__()
        self.register_buffer("position_G", positions(endogenous))
        self.n_peaks = int(endogenous.sum())
        self.dropout = Dropout(dropout)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return ones at the open peaks, B x E."""
        at = self.position_G[batch.feature_M]
        seen = at >= 0
        cell, at = batch.cell_M[seen], at[seen]
        kept = self.dropout.hide(torch.ones_like(batch.count_M[seen]))
        open_BE = kept.new_zeros(batch.n_cells, self.n_peaks)
        open_BE[cell, at] = kept
        return open_BE


def _told(open_BE: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """Return what every encoder is told besides: the log number of open peaks, covariates, extra features."""
    return [open_BE.sum(1, keepdim=True).clamp(min=1).log(), batch.covariates_BC, batch.extra_BF]


def _posterior(out: torch.Tensor, num_topics: int) -> Posterior:
    return Posterior(out[:, :num_topics], F.softplus(out[:, num_topics:]))


class DANEncoder(nn.Module):
    """Deep averaging network: mean embedding of the open peaks, then blocks (Iyyer et al., ACL 2015).

    With `skip`, the mean embedding is normalised and added to the last hidden layer.
    """

    def __init__(
        self,
        peaks: OpenPeaks,
        num_topics: int,
        hidden: int,
        num_layers: int,
        embedding_size: int | None,
        dropout: float,
        n_told: int,
        skip: bool,
    ) -> None:
        super().__init__()
        size = embedding_size or hidden
        self.num_topics, self.skip = num_topics, skip
        self.peaks = peaks
        self.embedding = PeakEmbedding(peaks.n_peaks, size)
        self.norm = nn.BatchNorm1d(size) if skip else nn.Identity()
        widths = [size + 1 + n_told, *[hidden] * (num_layers - 2)]
        self.blocks = nn.Sequential(*(block(a, b, dropout) for a, b in itertools.pairwise(widths)))
        self.out = nn.Sequential(linear(widths[-1], 2 * num_topics), nn.BatchNorm1d(2 * num_topics))

    def forward(self, batch: Batch) -> Posterior:
        """Encode a minibatch."""
        open_BE = self.peaks(batch)
        mean = self.norm(self.embedding(open_BE))
        h = self.blocks(torch.cat([mean, *_told(open_BE, batch)], dim=1))
        return _posterior(self.out(h + mean if self.skip else h), self.num_topics)


class LSIEncoder(nn.Module):
    """A projection of the open peaks that was learned beforehand, then blocks."""

    projection_ER: torch.Tensor
    idf_E: torch.Tensor

    def __init__(
        self,
        peaks: OpenPeaks,
        lsi: LSI,
        num_topics: int,
        hidden: int,
        num_layers: int,
        embedding_size: int | None,
        dropout: float,
        n_told: int,
    ) -> None:
        super().__init__()
        self.num_topics = num_topics
        self.peaks = peaks
        # not in the network's state: they are saved with the statistics
        self.register_buffer("idf_E", torch.from_numpy(lsi.idf).float(), persistent=False)
        projection = torch.from_numpy(lsi.components / lsi.deviations).float()
        self.register_buffer("projection_ER", projection, persistent=False)
        n_in = projection.shape[1] + 1 + n_told
        self.layers = encoder_stack(n_in, embedding_size or hidden, hidden, 2 * num_topics, num_layers, dropout)

    def forward(self, batch: Batch) -> Posterior:
        """Encode a minibatch."""
        open_BE = self.peaks(batch)
        weighed_BE = F.normalize(open_BE * self.idf_E, dim=1)
        x = torch.cat([weighed_BE @ self.projection_ER, *_told(open_BE, batch)], dim=1)
        return _posterior(self.layers(x), self.num_topics)
