"""One pass over a matrix of any size: what its cells, its features and its values add up to.

Matrices that were left on the disk are read some cells at a time (some features, if they lie by feature).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from ..errors import DataError
from . import formats
from .anndata_io import CHUNK_VALUES

RAW = "raw.X"
MOST_ROWS = 4096  # of a chunk
BLOCKS = 64  # of neighbouring cells, in which a sample is read
HISTOGRAM = 16  # values from there on are one bin
SMALL = 2**26  # bytes of a matrix that may be copied whole


@dataclass(frozen=True)
class Stored:
    """A matrix of a data set.

    Attributes
    ----------
    name
        A layer, None for ``X``, or `RAW`.
    matrix
        In memory, or left on the disk.
    """

    name: str | None
    matrix: Any

    @property
    def label(self) -> str:
        """What a user calls it."""
        return "X" if self.name is None else RAW if self.name == RAW else f"layers[{self.name!r}]"

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and features."""
        return int(self.matrix.shape[0]), int(self.matrix.shape[1])

    @property
    def by_column(self) -> bool:
        """Whether it lies by feature, so that reading a cell reads all."""
        return getattr(self.matrix, "format", "") == "csc"

    @property
    def in_memory(self) -> bool:
        """Whether nothing has to be read."""
        return isinstance(self.matrix, np.ndarray) or sp.issparse(self.matrix)


def stored(adata: ad.AnnData) -> list[Stored]:
    """Return X, the layers, and raw, as far as there are."""
    try:
        x = adata.X
    except KeyError:  # how one that is read from the disk says that it has none
        x = None
    found = [Stored(None, x)] if x is not None else []
    found += [Stored(str(name), adata.layers[name]) for name in adata.layers]
    if adata.raw is not None and adata.raw.X is not None:
        found.append(Stored(RAW, adata.raw.X))
    return found


def sample(n: int, most: int, blocks: int = BLOCKS) -> list[slice]:
    """Return slices of `n` cells, `most` cells in all: evenly spread blocks of neighbours, which are read fast."""
    if n <= most:
        return [slice(0, n)]
    blocks = min(blocks, most)
    size = most // blocks
    starts = np.linspace(0, n - size, blocks).astype(int)
    return [slice(int(s), int(s) + size) for s in starts]


def chunks(of: Stored, rows: list[slice]) -> Iterator[tuple[slice, slice, sp.csr_array]]:
    """Yield rows, columns and the values there, until all of these rows have come."""
    n, g = of.shape
    if of.by_column and not of.in_memory:
        size = max(1, CHUNK_VALUES // max(1, n))
        for start in range(0, g, size):
            columns = slice(start, min(g, start + size))
            block = _read(of, np.s_[:, columns])
            at = 0
            for r in rows:
                yield slice(at, at + r.stop - r.start), columns, block[r]
                at += r.stop - r.start
        return
    size = max(1, min(MOST_ROWS, CHUNK_VALUES // max(1, g)))
    at = 0
    if of.by_column:  # slicing such a matrix by rows walks through all of it, so as seldom as memory allows
        size = max(size, n // 32)
    for r in rows:
        for start in range(r.start, r.stop, size):
            stop = min(r.stop, start + size)
            yield slice(at, at + stop - start), slice(0, g), _read(of, np.s_[start:stop])
            at += stop - start


def _read(of: Stored, at: Any) -> sp.csr_array:
    try:
        block = of.matrix[at]
        block = block if sp.issparse(block) else np.asarray(block)
        if block.dtype.kind not in "buif":
            raise DataError(f"{of.label} must hold numbers; got {block.dtype}")
        if sp.issparse(block):
            return sp.csr_array(block if of.in_memory else formats.checked(block, of.label))
        if block.dtype == np.float16:  # scipy knows none
            block = block.astype(np.float32)
        return sp.csr_array(np.atleast_2d(block))
    except (DataError, MemoryError):
        raise
    except Exception as problem:
        raise DataError(f"{of.label} cannot be read, the file may be damaged: {problem}") from problem


def read_sample(of: Stored, most: int) -> sp.csr_array:
    """Return some cells, spread evenly, with all features."""
    rows = sample(of.shape[0], most, 8)
    parts: dict[int, list[sp.csr_array]] = {}
    for at, _, block in chunks(of, rows):
        parts.setdefault(at.start, []).append(block)
    lines = [sp.hstack(line, format="csr") if len(line) > 1 else line[0] for line in parts.values()]
    return sp.csr_array(sp.vstack(lines, format="csr")) if lines else sp.csr_array(of.shape)


@dataclass
class Tally:
    """What a pass has found.

    Attributes
    ----------
    rows
        The cells that were looked at, of `n_cells`.
    totals, features_seen, marked
        Of each such cell: sum, features above zero, and sums over marked features by name.
    feature_totals, cells_seen
        Of each feature: sum, cells above zero.
    n_values, n_fractions, n_negative, n_bad
        Values other than zero; those with a fraction, below zero, NaN or infinite.
    histogram
        How many values are 0, 1, 2, ..., `HISTOGRAM` or more; zeros are not told.
    """

    rows: np.ndarray
    n_cells: int
    totals: np.ndarray
    features_seen: np.ndarray
    feature_totals: np.ndarray
    cells_seen: np.ndarray
    marked: dict[str, np.ndarray] = field(default_factory=dict)
    n_values: int = 0
    n_fractions: int = 0
    n_negative: int = 0
    n_bad: int = 0
    smallest: float = np.inf
    largest: float = -np.inf
    fraction: float = np.nan
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(HISTOGRAM + 1, np.int64))

    @property
    def whole(self) -> bool:
        """Whether all cells were looked at."""
        return len(self.rows) == self.n_cells

    @property
    def looked_at(self) -> str:
        """Words that say how many cells were looked at, with a blank before them; nothing if all were."""
        return "" if self.whole else f" (looked at {len(self.rows):,} cells, spread over all {self.n_cells:,})"

    @property
    def are_counts(self) -> bool:
        """Whether all values are whole and none is negative."""
        return not (self.n_fractions or self.n_negative or self.n_bad) and self.largest <= 2**24

    def add(self, at: slice, columns: slice, block: sp.csr_array, marks: dict[str, np.ndarray]) -> None:
        """Count a chunk in."""
        if not block.has_canonical_format:
            block = sp.csr_array(block, copy=True)
            block.sum_duplicates()
        v, of_column = block.data, block.indices
        kept = v != 0
        if not kept.all():
            of_row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))[kept]
            v, of_column = v[kept], of_column[kept]
            lengths = np.bincount(of_row, minlength=block.shape[0])
            block = sp.csr_array((v, of_column, np.append(0, np.cumsum(lengths))), shape=block.shape)
        self._add_values(v)
        weights = np.column_stack([np.ones(block.shape[1]), *(m[columns] for m in marks.values())])
        sums = block @ weights
        self.totals[at] += sums[:, 0]
        for k, name in enumerate(marks):
            self.marked[name][at] += sums[:, k + 1]
        above = np.ones(len(v), bool) if self.n_negative == 0 and self.n_bad == 0 else v > 0
        self.features_seen[at] += _sum_rows(above, block.indptr)
        n = block.shape[1]
        self.feature_totals[columns] += np.bincount(of_column, weights=v, minlength=n)
        self.cells_seen[columns] += np.bincount(of_column[above], minlength=n)

    def _add_values(self, v: np.ndarray) -> None:
        self.n_values += v.size
        if v.dtype.kind == "f":
            bad = ~np.isfinite(v)
            if bad.any():
                self.n_bad += int(bad.sum())
                v = v[~bad]
            off = v[v != np.rint(v)]
            if off.size:
                self.n_fractions += off.size
                if np.isnan(self.fraction):
                    self.fraction = float(off[0])
        if not v.size:
            return
        low, high = float(v.min()), float(v.max())
        self.smallest, self.largest = min(self.smallest, low), max(self.largest, high)
        if low < 0:
            self.n_negative += int((v < 0).sum())
        elif not self.n_fractions:
            self.histogram += np.bincount(np.minimum(v, HISTOGRAM).astype(np.int64), minlength=HISTOGRAM + 1)


def _sum_rows(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    if values.all():
        return np.diff(indptr)
    return np.diff(np.append(0, np.cumsum(values))[indptr])


def tally(of: Stored, marks: dict[str, np.ndarray] | None = None, most_cells: int | None = None) -> Tally:
    """Go through a matrix once.

    Parameters
    ----------
    of
        The matrix.
    marks
        Sets of features by name, as arrays of booleans, over which each cell's values are summed, too.
    most_cells
        How many cells to look at, of more than these; None: all.
    """
    n, g = of.shape
    rows = sample(n, n if most_cells is None else most_cells)
    looked = np.concatenate([np.arange(r.start, r.stop) for r in rows]) if n else np.zeros(0, int)
    marks = {name: np.asarray(m, bool) for name, m in (marks or {}).items()}
    out = Tally(
        looked, n, np.zeros(len(looked)), np.zeros(len(looked), np.int64), np.zeros(g), np.zeros(g, np.int64),
        {name: np.zeros(len(looked)) for name in marks},
    )  # fmt: skip
    with np.errstate(invalid="ignore"):
        for at, columns, block in chunks(of, rows):
            out.add(at, columns, block, marks)
    return out
