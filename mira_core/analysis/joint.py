"""Two modalities of the same cells: joint coordinates, and which topics go together.

Shapes: N shared cells, K topics of one modality, J of the other.
"""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from ..errors import DataError, OptionError
from .differential import FLOOR, log_ratios
from .predicted import compositions_of, topic_names

COORDINATES, JOINT = "X_umap_features", "X_joint_umap_features"
SHARE = 0.5  # of the smaller modality's cells, below which sharing is too little to be meant


def make_joint_representation(
    rna: ad.AnnData, atac: ad.AnnData, *, weight: float = 0.5, key_added: str = JOINT
) -> tuple[ad.AnnData, ad.AnnData]:
    """Put the topics of two modalities of the same cells into one space, for neighbours and a joint UMAP.

    Each modality's coordinates are centred and divided by their own spread, the root mean square distance of a cell
    from the centre, so that neither rules because it has more topics or wider ones; then they are put side by side.
    Squared, a distance is the mean of both modalities' squared distances, weighted. (MIRA's function of this name
    does the same in substance; its scales differ.)

    Parameters
    ----------
    rna, atac
        Cells with ``obsm['X_umap_features']``, as `TopicModel.predict` writes them; matched by their names
        (``obs_names``), in any order.
    weight
        Of the first modality, between 0 and 1.
    key_added
        Field of ``obsm`` to write.

    Returns
    -------
    tuple of anndata.AnnData
        The same objects if their cells are the same, in the same order; else copies of the shared cells, in the order
        of the first. Both have ``obsm['X_joint_umap_features']``, N x (K - 1 + J - 1), for
        ``scanpy.pp.neighbors(..., use_rep="X_joint_umap_features", metric="manhattan")``.

    Raises
    ------
    DataError
        If coordinates are missing, names repeat, or fewer than half of the smaller modality's cells are shared.
    OptionError
        If the weight is out of bounds.
    """
    if not 0 < weight < 1:
        raise OptionError(f"weight must be between 0 and 1; got {weight}")
    one, two = (_coordinates(a, name) for a, name in ((rna, "the first"), (atac, "the second")))
    at, to = shared_cells(rna, atac)
    joint = np.hstack([
        np.sqrt(weight) * scaled(one[at]), np.sqrt(1 - weight) * scaled(two[to])
    ]).astype(np.float32)  # fmt: skip
    same = len(at) == rna.n_obs == atac.n_obs and np.array_equal(at, to) and np.array_equal(at, np.arange(len(at)))
    if not same:
        rna, atac = rna[at].copy(), atac[to].copy()
    rna.obsm[key_added] = joint
    atac.obsm[key_added] = joint.copy()
    return rna, atac


def correlate_topics(rna: ad.AnnData, atac: ad.AnnData, *, method: str = "log-ratio") -> pd.DataFrame:
    """Correlate the topics of two modalities over the cells that they share.

    Parameters
    ----------
    rna, atac
        Cells with topics; matched by their names.
    method
        ``"log-ratio"``: of the centred log-ratios of the shares, those below 0.001 counted as this. Shares sum to
        one, so that of plain ones a topic that rises forces the others down, and the cells that are nearly all of one
        topic decide; logarithms see the small shares as well, which tell gradients. Where two noisy views of known
        compositions are compared, pairs stand out further from the rest than by plain shares.
        ``"shares"``: of the shares themselves, which sees which cells the topics fill, and no more.

    Returns
    -------
    pandas.DataFrame
        Pearson correlations, K x J, by the names of the topics; NaN for a topic that does not vary. Where there are
        cell types, nearly all topics correlate a little: read the greatest of a row and a column.

    Raises
    ------
    DataError
        If topics are missing, names repeat, or too few cells are shared.
    OptionError
        If the method is unknown.
    """
    if method not in ("log-ratio", "shares"):
        raise OptionError(f"method must be 'log-ratio' or 'shares'; got {method!r}")
    at, to = shared_cells(rna, atac)
    sides = [np.asarray(theta)[cells] for theta, cells in ((compositions_of(rna), at), (compositions_of(atac), to))]
    standard = []
    for theta in sides:
        x = log_ratios(theta, min(FLOOR, 0.1 / theta.shape[1])) if method == "log-ratio" else theta.T
        x = x.astype(float) - x.mean(1, dtype=float, keepdims=True)
        length = np.linalg.norm(x, axis=1, keepdims=True)
        standard.append(np.divide(x, length, out=np.full_like(x, np.nan), where=length > 1e-9))
    a, b = standard
    return pd.DataFrame(a @ b.T, topic_names(len(a)), topic_names(len(b)))


def shared_cells(one: ad.AnnData, two: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the cells that two data sets share by name, in the order of the first.

    Raises
    ------
    DataError
        If names repeat, or fewer than half of the smaller one's cells are shared.
    """
    for which, adata in (("first", one), ("second", two)):
        if not adata.obs_names.is_unique:
            twice = adata.obs_names[adata.obs_names.duplicated()][0]
            raise DataError(f"names of cells must be unique to be matched; in the {which} data {twice!r} repeats")
    where = two.obs_names.get_indexer(one.obs_names)
    at = np.flatnonzero(where >= 0)
    least = min(one.n_obs, two.n_obs)
    if len(at) < SHARE * least or len(at) < 2:
        raise DataError(
            f"the modalities must be of the same cells, by their names; of {one.n_obs:,} and {two.n_obs:,} cells "
            f"{len(at):,} are shared. They are named like {one.obs_names[0]!r} and {two.obs_names[0]!r}: make "
            "obs_names the same, such as by cutting off suffixes"
        )
    if len(at) < least:
        warnings.warn(f"{len(at):,} of {one.n_obs:,} and {two.n_obs:,} cells are in both modalities", stacklevel=3)
    return at, where[at]


def scaled(x: np.ndarray) -> np.ndarray:
    """Return coordinates, centred and over their spread: the root mean square distance from the centre."""
    x = x - x.mean(0, dtype=float)
    spread = np.sqrt((x**2).sum(1).mean())
    return np.asarray(x / max(spread, 1e-12))


def _coordinates(adata: Any, which: str) -> np.ndarray:
    if not isinstance(adata, ad.AnnData) or COORDINATES not in adata.obsm:
        raise DataError(
            f"{which} modality must be an AnnData with obsm[{COORDINATES!r}]; call model.predict(adata) first"
        )
    values = np.asarray(adata.obsm[COORDINATES])
    if values.ndim != 2 or not values.shape[1] or not np.isfinite(values).all():
        raise DataError(f"obsm[{COORDINATES!r}] of {which} modality must hold finite coordinates; predict anew")
    return values
