"""A map of cells by their topics: scanpy's UMAP, without the waits that are not its own.

Numba compiles what UMAP is made of in each process anew, which takes longer than most maps do; here it is told to keep
what it compiled. The nearest neighbours of up to `EXACT` cells are found by comparing all with all, which is exact and
needs nothing compiled; those of more by scanpy's own choice, pynndescent.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

EXACT = 50_000  # cells; comparing all takes 30 s of two cores there, as pynndescent takes to be compiled
NEIGHBOURS = 15
AT_ONCE = 2**24  # distances
FEATURES = "features"


def embed(features: np.ndarray, progress: Callable[[float], None] = lambda _: None) -> np.ndarray:
    """Lay cells out in two dimensions (scanpy; neighbours with the manhattan metric).

    Parameters
    ----------
    features
        Coordinates of cells, such as ``obsm['X_umap_features']``, N x D.
    progress
        Told the share that is done.

    Returns
    -------
    numpy.ndarray
        N x 2, float32. The same features give the same map.
    """
    n = len(features)
    if n < 4:
        return np.zeros((n, 2), np.float32)
    import_umap()
    import scanpy as sc
    from numba import NumbaWarning

    cells = ad.AnnData(obsm={FEATURES: np.asarray(features, np.float32)})
    k = min(NEIGHBOURS, n - 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cannot cache compiled function", NumbaWarning)
        sc.pp.neighbors(
            cells, n_neighbors=k, use_rep=FEATURES, metric="manhattan", random_state=0,
            transformer=NearestCells(k) if n <= EXACT else None,
        )  # fmt: skip
        progress(0.4)
        sc.tl.umap(cells, random_state=0)
    progress(1.0)
    return np.asarray(cells.obsm["X_umap"], np.float32)


class NearestCells:
    """The nearest cells of each by the manhattan metric, without itself, as scanpy takes them.

    Parameters
    ----------
    n_neighbors
        How many, the cell itself among them.
    """

    def __init__(self, n_neighbors: int) -> None:
        self.n_neighbors = n_neighbors

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters."""
        return {"n_neighbors": self.n_neighbors}

    def fit(self, X: np.ndarray, y: None = None) -> NearestCells:
        """Do nothing: all is done at once."""
        return self

    def transform(self, X: np.ndarray) -> sp.csr_matrix:
        """Return the distances to the nearest cells, N x N, `n_neighbors` - 1 in each row, the nearest first."""
        import torch  # here, as pages that show maps are served without it

        x = torch.as_tensor(np.ascontiguousarray(X, np.float32))
        n, k = len(x), self.n_neighbors - 1
        rows = max(1, AT_ONCE // n)
        found = []
        for start in range(0, n, rows):
            distance = torch.cdist(x[start : start + rows], x, p=1)
            itself = torch.arange(len(distance))
            distance[itself, itself + start] = torch.inf
            found.append(distance.topk(k, largest=False))
        data, indices = (torch.cat([f[i] for f in found]).numpy().ravel() for i in (0, 1))
        return sp.csr_matrix((data, indices, np.arange(0, n * k + 1, k)), shape=(n, n))

    def fit_transform(self, X: np.ndarray, y: None = None) -> sp.csr_matrix:
        """Return what `transform` does."""
        return self.transform(X)


@functools.cache
def import_umap() -> None:
    """Import UMAP so that what numba compiles for it is kept on the disk, where there is a place for it."""
    import numba

    compiled = numba.njit

    def kept(*args: Any, **options: Any) -> Any:
        if args and callable(args[0]):
            return kept(**options)(args[0])

        def decorate(function: Any) -> Any:
            try:
                return compiled(*args, **{"cache": True, **options})(function)
            except RuntimeError:  # no folder to keep it in can be written
                return compiled(*args, **options)(function)

        return decorate

    numba.njit = kept
    try:
        import umap.umap_  # noqa: F401
    finally:
        numba.njit = compiled
