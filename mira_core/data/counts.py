"""Counts of cells by features, and the minibatches made from them.

Shapes: N cells in the data, B cells in a minibatch, G modelled features, C covariate columns, F extra features,
M non-zero counts of a minibatch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .covariates import Coding
from .file_array import FileArray

if TYPE_CHECKING:  # who only reads data, as the dashboard does, need not wait for torch
    import torch

CHUNK = 2**19  # non-zeros handled at once where all cells are gone through


@dataclass(frozen=True, eq=False)
class Batch:
    """One minibatch.

    Attributes
    ----------
    place_M : int64
        Where the non-zero counts stand in a B x G array, row by row, in ascending order.
    feature_M : int32
        Their features.
    count_M : float
        The non-zero counts.
    depth_B : float
        Counts of each cell over the modelled features.
    covariates_BC, extra_BF : float
        Technical covariates, and extra features for the encoder.
    n_features
        G.
    """

    place_M: torch.Tensor
    feature_M: torch.Tensor
    count_M: torch.Tensor
    depth_B: torch.Tensor
    covariates_BC: torch.Tensor
    extra_BF: torch.Tensor
    n_features: int

    @property
    def n_cells(self) -> int:
        """Number of cells, B."""
        return len(self.depth_B)

    @cached_property
    def counts_BG(self) -> torch.Tensor:
        """All the counts, B x G. At the densities of these data, arithmetic with zeros costs less than indices."""
        counts = self.count_M.new_zeros(self.n_cells * self.n_features)
        counts[self.place_M] = self.count_M
        return counts.view(self.n_cells, self.n_features)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
        """Move to a device; floating tensors take `dtype`, single precision if none is given."""
        import torch

        dtype = dtype or torch.float32

        def moved(t: torch.Tensor) -> torch.Tensor:
            return t.to(device, dtype if t.is_floating_point() else None, non_blocking=True)

        return Batch(
            moved(self.place_M), moved(self.feature_M), moved(self.count_M), moved(self.depth_B),
            moved(self.covariates_BC), moved(self.extra_BF), self.n_features,
        )  # fmt: skip


class CountMatrix:
    """Non-negative whole counts in compressed sparse rows, N x G, in memory or on the disk.

    Parameters
    ----------
    starts, lengths
        Where each cell's non-zeros begin, and how many they are; N.
    indices, values
        Feature and count of the non-zeros, sorted by feature within a cell, without zeros or repeats.
    n_features
        G.
    """

    def __init__(
        self,
        starts: np.ndarray,
        lengths: np.ndarray,
        indices: np.ndarray | FileArray,
        values: np.ndarray | FileArray,
        n_features: int,
    ) -> None:
        self.starts, self.lengths, self.indices, self.values = starts, lengths, indices, values
        self.shape = (len(starts), n_features)

    @classmethod
    def from_scipy(cls, matrix: sp.csr_array) -> CountMatrix:
        """Take anything that scipy can make a CSR array of.

        Explicit zeros are dropped and columns sorted, so that equal counts give equal minibatches however they
        were stored.
        """
        m = sp.csr_array(matrix, dtype=np.float32, copy=True)
        m.sum_duplicates()
        m.eliminate_zeros()
        indptr = m.indptr.astype(np.int64)
        return cls(indptr[:-1], np.diff(indptr), m.indices.astype(np.int32), m.data, m.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, cells: np.ndarray) -> CountMatrix:
        """Return some of the cells, without copying their counts."""
        return CountMatrix(self.starts[cells], self.lengths[cells], self.indices, self.values, self.shape[1])

    def depths(self) -> np.ndarray:
        """Return the counts of each cell, float64, N."""
        parts = [np.bincount(row, weights=count, minlength=n) for n, row, _, count in self._chunks()]
        return np.concatenate(parts) if parts else np.zeros(0)

    def feature_totals(self) -> np.ndarray:
        """Return the counts of each feature, float64, G."""
        total = np.zeros(self.shape[1])
        for _, _, feature, count in self._chunks():
            total += np.bincount(feature, weights=count, minlength=self.shape[1])
        return total

    def _chunks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        ends = np.cumsum(self.lengths)
        start = 0
        while start < len(self):
            before = ends[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
            yield end - start, *self.rows(np.arange(start, end))
            start = end

    def rows(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return row within `cells`, feature and count of every non-zero of these cells, gathered at once."""
        n = self.lengths[cells]
        starts = self.starts[cells]
        row = np.repeat(np.arange(len(cells)), n)
        if isinstance(self.indices, FileArray):
            feature = self.indices.gather(starts, n)
        else:
            at = np.arange(len(row))
            at += np.repeat(starts - (np.cumsum(n) - n), n)
            feature = self.indices.take(at)
        count = self.values.gather(starts, n) if isinstance(self.values, FileArray) else self.values.take(at)
        return row, feature, count

    def csr_chunks(self) -> Iterator[sp.csr_array]:
        """Yield the counts as CSR arrays of some hundred thousand non-zeros each, in order."""
        for n, row, feature, count in self._chunks():
            indptr = np.append(0, np.cumsum(np.bincount(row, minlength=n)))
            yield sp.csr_array((count, feature, indptr), shape=(n, self.shape[1]))

    def to_csr(self) -> sp.csr_array:
        """Return the counts as one CSR array, in memory."""
        chunks = list(self.csr_chunks())
        return sp.csr_array(sp.vstack(chunks)) if chunks else sp.csr_array(self.shape, dtype=np.float32)


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
    coding
        How the covariates and extra features were coded.
    covariates, extra
        N x C and N x F, float32; C and F may be 0.
    """

    counts: CountMatrix
    features: np.ndarray
    endogenous: np.ndarray
    coding: Coding
    covariates: np.ndarray
    extra: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, cells: np.ndarray) -> Cells:
        """Return some of the cells."""
        return replace(self, counts=self.counts.take(cells), covariates=self.covariates[cells], extra=self.extra[cells])

    def batch(self, cells: np.ndarray) -> Batch:
        """Assemble the minibatch of these cells (row numbers)."""
        import torch

        row, feature, count = self.counts.rows(cells)
        n_features = self.counts.shape[1]
        depth = np.bincount(row, weights=count, minlength=len(cells)).astype(np.float32)
        row *= n_features
        row += feature
        arrays = (row, feature, count, depth, self.covariates[cells], self.extra[cells])
        return Batch(*map(torch.from_numpy, arrays), n_features)
