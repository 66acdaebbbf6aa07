"""q(theta | x) for accessibility: from the set of open peaks to the posterior of a cell's topics.

Shapes: B cells, G modelled peaks, E encoder peaks, K topics, R components of the LSI.
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
from .encoders import Posterior, SeenFeatures


class OpenPeaks(nn.Module):
    """The open encoder peaks of each cell; while training, each is left out with probability `dropout`."""

    def __init__(self, endogenous: np.ndarray, dropout: float) -> None:
        super().__init__()
        self.seen = SeenFeatures(endogenous)
        self.n_peaks = int(endogenous.sum())
        self.dropout = Dropout(dropout)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return ones at the open peaks, B x E."""
        return self.seen(self.dropout.hide_among(batch.counts_BG, lambda: batch.place_M))


def _told(n_open_B: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """Return what every encoder is told besides: the log number of open peaks, covariates, extra features."""
    return [n_open_B.clamp(min=1).log()[:, None], batch.covariates_BC, batch.extra_BF]


def _posterior(out: torch.Tensor, num_topics: int) -> Posterior:
    loc_BK, scale_BK = out.split(num_topics, 1)
    return Posterior(loc_BK, F.softplus(scale_BK))


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
        n_open_B = open_BE.sum(1)
        mean = self.norm(self.embedding(open_BE, n_open_B))
        h = self.blocks(torch.cat([mean, *_told(n_open_B, batch)], dim=1))
        return _posterior(self.out(h + mean if self.skip else h), self.num_topics)


class LSIEncoder(nn.Module):
    """A projection of the open peaks that was learned beforehand, then blocks."""

    by_peak_ER: torch.Tensor

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
        projection = lsi.idf[:, None] * lsi.components / lsi.deviations
        # one product gives the projection, the squared norm that it is divided by, and the number of open peaks
        by_peak = np.column_stack([projection, lsi.idf**2, np.ones_like(lsi.idf)])
        self.register_buffer("by_peak_ER", torch.from_numpy(by_peak).float(), persistent=False)
        n_in = projection.shape[1] + 1 + n_told
        self.layers = encoder_stack(n_in, embedding_size or hidden, hidden, 2 * num_topics, num_layers, dropout)

    def forward(self, batch: Batch) -> Posterior:
        """Encode a minibatch."""
        summed = self.peaks(batch) @ self.by_peak_ER
        norm_B1 = summed[:, -2:-1].clamp(min=1e-24).sqrt()
        x = torch.cat([summed[:, :-2] / norm_B1, *_told(summed[:, -1], batch)], dim=1)
        return _posterior(self.layers(x), self.num_topics)
