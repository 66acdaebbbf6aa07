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
from .file_array import StoredRows

if TYPE_CHECKING:  # who only reads data, as the dashboard does, need not wait for torch
    import torch

CHUNK = 2**19  # non-zeros handled at once where all cells are gone through


@dataclass(frozen=True, eq=False)
class Batch:
    """One minibatch.

    Attributes
    ----------
    edges_B1 : int64
        Where each cell's non-zeros begin, and where the last one's end; B + 1.
    feature_M : int32
        The features of the non-zeros, ordered by cell and then by feature.
    count_M : float
        The non-zero counts.
    covariates_BC, extra_BF : float
        Technical covariates, and extra features for the encoder.
    n_features
        G.

    The non-zeros are None where only the dense counts are known.
    """

    edges_B1: torch.Tensor | None
    feature_M: torch.Tensor | None
    count_M: torch.Tensor | None
    covariates_BC: torch.Tensor
    extra_BF: torch.Tensor
    n_features: int

    @classmethod
    def of_counts(cls, counts_BG: torch.Tensor, covariates_BC: torch.Tensor, extra_BF: torch.Tensor) -> Batch:
        """Make a minibatch of which only the dense counts are known, as a device assembles it."""
        batch = cls(None, None, None, covariates_BC, extra_BF, counts_BG.shape[1])
        batch.__dict__["counts_BG"] = counts_BG
        return batch

    @property
    def n_cells(self) -> int:
        """Number of cells, B."""
        return len(self.covariates_BC)

    @cached_property
    def cell_M(self) -> torch.Tensor:
        """Which cell each non-zero is of."""
        import torch

        edges_B1, _, count_M = self._nonzeros()
        return torch.repeat_interleave(edges_B1.diff(), output_size=len(count_M))

    @cached_property
    def place_M(self) -> torch.Tensor:
        """Where the non-zeros stand in a B x G array, row by row."""
        _, feature_M, _ = self._nonzeros()
        return self.cell_M * self.n_features + feature_M

    @cached_property
    def counts_BG(self) -> torch.Tensor:
        """All the counts, B x G. At the densities of these data, arithmetic with zeros costs less than indices."""
        import torch

        shape = (self.n_cells, self.n_features)
        edges_B1, feature_M, count_M = self._nonzeros()
        if count_M.device.type == "cpu":
            csr = (count_M.numpy(), feature_M.numpy(), edges_B1.numpy())
            return torch.from_numpy(sp.csr_array(csr, shape=shape).toarray())
        counts = count_M.new_zeros(shape)
        counts.view(-1)[self.place_M] = count_M
        return counts

    def _nonzeros(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        assert self.edges_B1 is not None
        assert self.feature_M is not None
        assert self.count_M is not None
        return self.edges_B1, self.feature_M, self.count_M

    @cached_property
    def depth_B(self) -> torch.Tensor:
        """Counts of each cell over the modelled features, B."""
        return self.counts_BG.sum(1)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
        """Move to a device; floating tensors take `dtype`, single precision if none is given."""
        import torch

        dtype = dtype or torch.float32

        def moved(t: torch.Tensor) -> torch.Tensor:
            return t.to(device, dtype if t.is_floating_point() else None, non_blocking=True)

        edges_B1, feature_M, count_M = (moved(t) for t in self._nonzeros())
        return Batch(edges_B1, feature_M, count_M, moved(self.covariates_BC), moved(self.extra_BF), self.n_features)


class CountMatrix:
    """Non-negative whole counts in compressed sparse rows, N x G, in memory or on the disk.

    Parameters
    ----------
    stored
        The counts, in each row sorted by feature, without zeros or repeats.
    cells
        Which rows, and in which order; None: all of them.
    """

    def __init__(self, stored: sp.csr_array | StoredRows, cells: np.ndarray | None = None) -> None:
        self.stored = stored
        self.cells = np.arange(stored.shape[0]) if cells is None else cells
        self.shape = (len(self.cells), stored.shape[1])

    @classmethod
    def from_scipy(cls, matrix: sp.csr_array) -> CountMatrix:
        """Take anything that scipy can make a CSR array of.

        Explicit zeros are dropped and columns sorted, so that equal counts give equal minibatches however they
        were stored.
        """
        m = sp.csr_array(matrix, dtype=np.float32, copy=True)
        m.sum_duplicates()
        m.eliminate_zeros()
        if m.nnz < 2**31:
            m.indices, m.indptr = m.indices.astype(np.int32, copy=False), m.indptr.astype(np.int32, copy=False)
        return cls(m)

    @property
    def on_disk(self) -> bool:
        """Whether the counts are read from the disk whenever they are asked for."""
        return isinstance(self.stored, StoredRows)

    @property
    def lengths(self) -> np.ndarray:
        """Non-zeros of each cell, N."""
        indptr = self.stored.indptr
        return (indptr[self.cells + 1] - indptr[self.cells]).astype(np.int64)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, cells: np.ndarray) -> CountMatrix:
        """Return some of the cells, without copying their counts."""
        return CountMatrix(self.stored, self.cells[cells])

    def depths(self) -> np.ndarray:
        """Return the counts of each cell, float64, N."""
        # in double precision, which a sum of single ones would not have
        parts = [
            np.add.reduceat(np.append(m.data, 0.0), m.indptr[:-1]) * (np.diff(m.indptr) > 0) for m in self.csr_chunks()
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def feature_totals(self) -> np.ndarray:
        """Return the counts of each feature, float64, G."""
        total = np.zeros(self.shape[1])
        for m in self.csr_chunks():
            total += np.bincount(m.indices, weights=m.data, minlength=self.shape[1])
        return total

    def rows(self, cells: np.ndarray) -> sp.csr_array:
        """Return some of the cells (row numbers) in memory, single precision."""
        return self.stored[self.cells[cells]]

    def csr_chunks(self) -> Iterator[sp.csr_array]:
        """Yield the counts as CSR arrays of some hundred thousand non-zeros each, in order."""
        ends = np.cumsum(self.lengths)
        start = 0
        while start < len(self):
            before = ends[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
            yield self.rows(np.arange(start, end))
            start = end

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

        m = self.counts.rows(cells)
        edges, features = m.indptr.astype(np.int64), m.indices.astype(np.int32, copy=False)
        covariates, extra = self.covariates[cells], self.extra[cells]
        edges_B1, feature_M, count_M, covariates_BC, extra_BF = (
            torch.from_numpy(a) for a in (edges, features, m.data, covariates, extra)
        )
        return Batch(edges_B1, feature_M, count_M, covariates_BC, extra_BF, m.shape[1])
