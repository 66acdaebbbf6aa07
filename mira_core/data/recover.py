"""Counts from values that were made of them: scaled within each cell, and perhaps logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..errors import DataError

# How logged values are undone; "scaled" are counts times a number for each cell.
TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log1p": np.expm1,
    "log2": lambda x: np.expm1(x * np.log(2)),
    "log10": lambda x: np.expm1(x * np.log(10)),
    "scaled": lambda x: x,
}
MOST = 300.0  # of a logarithm, to any base, that can be undone
ENOUGH = 20  # values of a cell, without a count of one, that tell its scale


def recover_counts(values: Any, transform: str = "log1p", tolerance: float = 0.2) -> sp.csr_matrix:
    """Recover whole counts from count x scale of the cell, or its log(1 + x).

    The smallest value of a cell is taken for a count of one, which gives the cell's scale; for a count of two or
    three where that alone makes the others whole.

    Parameters
    ----------
    values
        N x G, dense or sparse.
    transform
        One of `TRANSFORMS`.
    tolerance
        How far from a whole number a recovered value may be; files often hold rounded logarithms.

    Returns
    -------
    scipy.sparse.csr_matrix
        Counts, int32. A cell without values stays empty.

    Raises
    ------
    DataError
        If values are not multiples of a cell's smallest one.
    """
    x = sp.csr_matrix(values, dtype=np.float64, copy=True)
    x.sum_duplicates()
    x.eliminate_zeros()
    if not np.isfinite(x.data).all() or (x.data < 0).any() or (transform != "scaled" and (x.data > MOST).any()):
        raise DataError("counts cannot be recovered: there are negative, infinite or missing values")
    x.data = TRANSFORMS[transform](x.data)
    lengths = np.diff(x.indptr)
    starts = x.indptr[:-1][lengths > 0]
    if not starts.size:
        return x.astype(np.int32)
    smallest = np.minimum.reduceat(x.data, starts)
    x.data /= np.repeat(smallest, lengths[lengths > 0])
    off = np.abs(x.data - np.rint(x.data))
    for start, end in zip(starts, np.append(starts[1:], x.nnz), strict=True):
        if off[start:end].max() > tolerance and end - start >= ENOUGH:
            for times in (2, 3):
                tried = x.data[start:end] * times
                if (np.abs(tried - np.rint(tried)) <= tolerance / 2).all():
                    x.data[start:end] = tried
                    break
    whole = np.rint(x.data)
    if (far := np.abs(x.data - whole).max()) > tolerance:
        raise DataError(f"counts cannot be recovered: a value is {far:.2f} from a whole number")
    if whole.max() > 2**24:
        raise DataError(f"counts cannot be recovered: one would be {whole.max():.4g}")
    x.data = whole
    return x.astype(np.int32)


def transform_of(values: Any) -> str | None:
    """Tell by which of `TRANSFORMS` the values of some cells become whole counts; None if by none.

    Multiples of one number in all cells, such as halves, are not taken for scaled counts.
    """
    x = sp.csr_matrix(values)
    smallest = {float(line.data[line.data != 0].min()) for line in x if line.data.any()}
    for transform in TRANSFORMS:
        if transform == "scaled" and len(smallest) < 2:
            continue
        try:
            if recover_counts(values, transform).nnz:
                return transform
        except DataError:
            continue
    return None
