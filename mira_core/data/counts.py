"""Counts of cells by features, and the minibatches made from them.

Shapes: N cells in the data, B cells in a minibatch, G modelled features, C covariate columns, F extra features,
M non-zero counts of a minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:  # who only reads data, as the dashboard does, need not wait for torch
    import torch


class Batch(NamedTuple):
    """One minibatch; the counts as their non-zeros, ordered by cell and then by feature.

    Attributes
    ----------
    cell_M, feature_M : int64
        Row within the minibatch and column of each non-zero count.
    count_M : float
        The non-zero counts.
    depth_B : float
        Counts of each cell over the modelled features.
    covariates_BC, extra_BF : float
        Technical covariates, and extra features for the encoder.
    """

    cell_M: torch.Tensor
    feature_M: torch.Tensor
    count_M: torch.Tensor
    depth_B: torch.Tensor
    covariates_BC: torch.Tensor
    extra_BF: torch.Tensor

    @property
    def n_cells(self) -> int:
        """Number of cells, B."""
        return len(self.depth_B)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
        """Move to a device; floating tensors take `dtype`, single precision if none is given."""
        import torch

        dtype = dtype or torch.float32
        return Batch(*(t.to(device, dtype if t.is_floating_point() else None, non_blocking=True) for t in self))

    def dense(self, n_features: int) -> torch.Tensor:
        """Return the counts as a B x G tensor."""
        x_BG = self.count_M.new_zeros(self.n_cells, n_features)
        x_BG[self.cell_M, self.feature_M] = self.count_M
        return x_BG


class CountMatrix:
    """Non-negative whole counts in compressed sparse rows, N x G.

    Parameters
    ----------
    matrix
        Anything that scipy can make a CSR array of. Explicit zeros are dropped and columns sorted, so that
        equal counts give equal minibatches however they were stored.
    """

    def __init__(self, matrix: sp.csr_array) -> None:
        m = sp.csr_array(matrix, dtype=np.float32, copy=True)
        m.sum_duplicates()
        m.eliminate_zeros()
        self.shape: tuple[int, int] = m.shape
        self.indptr = m.indptr.astype(np.int64)
        self.indices = m.indices.astype(np.int32)
        self.values = m.data

    def __len__(self) -> int:
        return self.shape[0]

    def depths(self) -> np.ndarray:
        """Return the counts of each cell, float64, N."""
        return np.add.reduceat(np.append(self.values, 0).astype(np.float64), self.indptr[:-1]) * (
            np.diff(self.indptr) > 0
        )

    def feature_totals(self) -> np.ndarray:
        """Return the counts of each feature, float64, G."""
        return np.bincount(self.indices, weights=self.values, minlength=self.shape[1])

    def rows(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return row within `cells`, feature and count of every non-zero of these cells, gathered at once."""
        start = self.indptr[cells]
        n = self.indptr[cells + 1] - start
        row = np.repeat(np.arange(len(cells)), n)
        first = np.cumsum(n) - n
        at = np.arange(len(row)) + np.repeat(start - first, n)
        return row, self.indices[at].astype(np.int64), self.values[at]

    def to_csr(self) -> sp.csr_array:
        """Return a scipy view of the counts."""
        return sp.csr_array((self.values, self.indices, self.indptr), shape=self.shape)


@dataclass
class Cells:
    """Cells as a model wants them: counts of its features, and what else it is told of each cell.

    Attributes
    ----------
    counts
        N x G, features in the model's order.
    features
        Names of the G features.
    endogenous
        Which of them the encoder sees, boolean, G.
    covariates, extra
        N x C and N x F, float32; C and F may be 0.
    """

    counts: CountMatrix
    features: np.ndarray
    endogenous: np.ndarray
    covariates: np.ndarray
    extra: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def batch(self, cells: np.ndarray) -> Batch:
        """Assemble the minibatch of these cells (row numbers)."""
        import torch

        row, feature, count = self.counts.rows(cells)
        depth = np.bincount(row, weights=count, minlength=len(cells)).astype(np.float32)
        arrays = (row, feature, count, depth, self.covariates[cells], self.extra[cells])
        return Batch(*map(torch.from_numpy, arrays))
