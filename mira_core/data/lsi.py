"""Latent semantic indexing of peaks: TF-IDF, then a truncated singular value decomposition.

Shapes: N cells, E encoder features, R components.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from .counts import CountMatrix

OVERSAMPLING = 10
SMALLEST = 1e-3  # singular value that counts, as a share of the largest
PASSES = 4  # over the data; each multiplies small singular values' errors away


@dataclass(frozen=True)
class LSI:
    """A projection of the open peaks of a cell.

    A cell's coordinates are ((open / #open) * idf, scaled to length one) @ components, divided by `deviations`.

    Attributes
    ----------
    idf
        log(1 + N / cells where the peak is open), E.
    components
        Right singular vectors, E x R, the largest singular value first.
    deviations
        Root mean square of each coordinate over the training cells, R.
    """

    idf: np.ndarray
    components: np.ndarray
    deviations: np.ndarray


def learn_lsi(counts: CountMatrix, endogenous: np.ndarray, n_components: int, seed: int) -> LSI:
    """Fit to training cells, in a few passes over them, without holding all.

    Randomised subspace iteration (Halko, Martinsson & Tropp, SIAM Review 2011).
    """
    n_features = int(endogenous.sum())
    n_components = min(n_components, n_features, len(counts))
    width = min(n_components + OVERSAMPLING, n_features, len(counts))
    cells_open = np.zeros(n_features)
    for chunk in counts.csr_chunks():
        cells_open += np.bincount(chunk[:, endogenous].indices, minlength=n_features)
    idf = np.log1p(len(counts) / np.maximum(cells_open, 1))

    def rows() -> Iterator[sp.csr_array]:
        for chunk in counts.csr_chunks():
            yield weigh(sp.csr_array(chunk[:, endogenous]), idf)

    basis = np.random.default_rng(seed).standard_normal((n_features, width))
    for _ in range(PASSES):
        basis = np.linalg.qr(basis)[0]
        basis = sum((w.T @ (w @ basis) for w in rows()), np.zeros((n_features, width)))
    basis = np.linalg.qr(basis)[0]
    gram = sum(((w @ basis).T @ (w @ basis) for w in rows()), np.zeros((width, width)))
    squares, vectors = np.linalg.eigh(gram)
    largest = np.argsort(-squares, kind="stable")[:n_components]
    # A direction in which no training cell extends says nothing, and dividing by its deviation would blow up what
    # others have there, such as a peak that was never open.
    largest = largest[squares[largest] > SMALLEST**2 * squares.max()]
    components = basis @ vectors[:, largest]
    components *= np.sign(components[np.abs(components).argmax(0), np.arange(len(largest))])
    deviations = np.sqrt(squares[largest] / len(counts))
    return LSI(idf, components, deviations)


def weigh(counts: sp.csr_array, idf: np.ndarray) -> sp.csr_array:
    """TF-IDF of open peaks, rows of length one; cells without any stay zero."""
    w = sp.csr_array((idf[counts.indices], counts.indices, counts.indptr), shape=counts.shape)
    length = np.sqrt(np.asarray(w.multiply(w).sum(1)).ravel())
    w.data = w.data / np.repeat(np.maximum(length, 1e-12), np.diff(w.indptr))
    return w
