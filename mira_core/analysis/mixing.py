"""How well batches mix where cells have the same topics, and whether that can be judged.

Shapes: N cells, B batches, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..data.anndata_io import check_counts
from ..data.counts import CountMatrix
from ..data.lsi import learn_lsi, weigh
from ..errors import DataError, OptionError
from .description import obs_column
from .predicted import compositions_of

COORDINATES = "X_umap_features"
CELLS = 10_000  # looked at, at most; the mean entropy of so many has a standard error below 0.005
COMPONENTS = 30  # of the plain representation
ENDS = (0.02, 0.98)  # shares of a batch within a label, beyond which it is as good as alone


@dataclass(frozen=True)
class Mixing:
    """How well batches mix.

    Attributes
    ----------
    mixing
        Mean entropy of the batches among a cell's neighbours, over what it would be if the cells of each label were
        mixed perfectly: 1 is perfect, 0 is that batches do not meet.
    auc, accuracy
        Of telling a cell's batch from its topics by a logistic regression, in 5-fold cross-validation: area under the
        ROC curve (of several batches, the mean of each against the rest; 0.5: no trace of the batch), and the share
        told right.
    auc_of_labels, accuracy_of_labels
        The same from the labels alone: what follows from batches that hold different kinds of cells, and is no flaw.
        NaN without labels.
    by_label
        By label: ``cells``, ``batches`` that it occurs in, ``largest``, the share of its largest batch, ``mixing``
        within it (above 1 where cells of a rare label have neighbours of others), and whether that
        ``can_be_judged``. Empty without labels.
    before
        The same `mixing`, `auc` and `accuracy` on a plain representation of the counts, if there are counts.
    representation
        What the plain representation is.
    warnings
        What to think of before trusting this.
    """

    mixing: float
    auc: float
    accuracy: float
    auc_of_labels: float
    accuracy_of_labels: float
    by_label: pd.DataFrame
    before: dict[str, float] | None = None
    representation: str = ""
    warnings: list[str] = field(default_factory=list)

    def to_frame(self) -> pd.DataFrame:
        """Return the figures as a table: a row for the topics, and one for the plain representation if there is one."""
        rows = {"topics": {name: getattr(self, name) for name in ("mixing", "auc", "accuracy")}}
        if self.before is not None:
            rows = {self.representation: self.before, **rows}
        return pd.DataFrame.from_dict(rows, orient="index")


def batch_mixing(
    adata: ad.AnnData,
    batch: str,
    labels: str | None = None,
    *,
    n_neighbors: int = 30,
    counts_layer: str | None = None,
    before: bool | None = None,
    seed: int = 0,
) -> Mixing:
    """Measure how well batches mix among cells with like topics.

    A model may mix batches by losing what tells cells apart, so look at the labels' purity too; and a label that is in
    one batch only cannot tell whether its distance from the others is biology or technique.

    Parameters
    ----------
    adata
        Cells with ``obsm['X_topic_compositions']`` and ``obsm['X_umap_features']``, as `TopicModel.predict` writes
        them. Of more than 10,000 cells, so many are drawn at random.
    batch
        Column of ``obs``.
    labels
        Column of ``obs`` with cell types or the like, against which mixing is measured. None: perfect mixing is that
        of all cells, which batches of different composition cannot reach.
    n_neighbors
        Neighbours of a cell (scikit-learn; Manhattan distance of ``X_umap_features``).
    counts_layer
        Layer with raw counts for the plain representation. None: ``X``.
    before
        Whether to measure a plain representation of the counts too: logarithms of normalised counts and their
        principal components by scanpy, or LSI (that of the fast encoder, without its first component, which is the
        depth) where features are named like peaks. None: if there are counts.
    seed
        Of the draw of cells and of cross-validation.

    Returns
    -------
    Mixing

    Raises
    ------
    DataError
        If a column or topics are missing, there is one batch only, or counts are asked for and are none.
    OptionError
        If `n_neighbors` does not suit the number of cells.
    """
    theta = compositions_of(adata)
    if COORDINATES not in adata.obsm:
        raise DataError(f"obsm[{COORDINATES!r}] is missing; call model.predict(adata) first")
    batches, label = obs_column(adata, batch), None if labels is None else obs_column(adata, labels)
    known = batches.notna() if label is None else batches.notna() & label.notna()
    at = np.flatnonzero(known.to_numpy())
    if len(at) > CELLS:
        at = np.sort(np.random.default_rng(seed).choice(at, CELLS, replace=False))
    code, names = pd.factorize(np.asarray(batches.iloc[at].astype(str)), sort=True)
    if len(names) < 2:
        raise DataError(f"mixing is of two batches at least; obs[{batch!r}] has {len(names)} where values are known")
    if isinstance(n_neighbors, bool) or not 1 <= n_neighbors < len(at):
        raise OptionError(f"n_neighbors must be from 1 to {len(at) - 1}, below the cells; got {n_neighbors}")
    one = np.eye(len(names))[code]
    kind, levels = np.zeros(len(at), int), np.array([], dtype=object)
    if label is not None:
        kind, levels = pd.factorize(np.asarray(label.iloc[at].astype(str)), sort=True)

    entropy = near_entropy(np.asarray(adata.obsm[COORDINATES])[at], one, n_neighbors)
    perfect = _perfect(one, kind)
    auc, accuracy = _told_by(theta[at], code, seed)
    by_label = _by_label(kind, levels.tolist(), one, entropy, perfect)
    of_labels = _told_by(np.eye(len(levels))[kind], code, seed) if len(levels) else (float("nan"), float("nan"))
    said = _warnings(by_label, batch, int((~known).sum()), adata.n_obs, len(at))
    plain = None
    if before or (before is None and _has_counts(adata, counts_layer)):
        x, name = _plain(adata, counts_layer, at, seed)
        told = _told_by(x, code, seed)
        plain = {"mixing": _over(near_entropy(x, one, n_neighbors, "euclidean"), perfect),
                 "auc": told[0], "accuracy": told[1]}  # fmt: skip
    return Mixing(
        _over(entropy, perfect), auc, accuracy, *of_labels, by_label, plain, name if plain is not None else "", said
    )


def near_entropy(x: np.ndarray, one_NB: np.ndarray, k: int, metric: str = "manhattan") -> np.ndarray:
    """Return the entropy in nats of the batches among each cell's k nearest neighbours, itself not counted, N."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute")  # trees are slower beyond few axes
    near = search.fit(x).kneighbors(return_distance=False)
    return _entropy(one_NB[near].mean(1))


def _entropy(share: np.ndarray) -> np.ndarray:
    return np.asarray(-(share * np.log(np.maximum(share, 1e-300))).sum(-1))


def _perfect(one_NB: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Return the entropy of the batches within each cell's label, N."""
    sums = np.zeros((kind.max() + 1, one_NB.shape[1]))
    np.add.at(sums, kind, one_NB)
    return _entropy(sums / sums.sum(1, keepdims=True))[kind]


def _over(entropy: np.ndarray, perfect: np.ndarray) -> float:
    """Return the mean over the mean: NaN if no label is in two batches."""
    return float(entropy.mean() / perfect.mean()) if perfect.mean() > 1e-9 else float("nan")


def _told_by(x: np.ndarray, code: np.ndarray, seed: int) -> tuple[float, float]:
    """Return AUC and accuracy of a logistic regression for the batch; NaN if a batch has too few cells."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if np.bincount(code).min() < 5:
        return float("nan"), float("nan")
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    p = cross_val_predict(model, np.asarray(x, float), code, cv=folds, method="predict_proba")
    several: dict[str, Any] = {"multi_class": "ovr"} if p.shape[1] > 2 else {}
    auc = roc_auc_score(code, p if several else p[:, 1], **several)
    return float(auc), float((p.argmax(1) == code).mean())


def _by_label(
    kind: np.ndarray, levels: list[str], one_NB: np.ndarray, entropy: np.ndarray, perfect: np.ndarray
) -> pd.DataFrame:
    rows = []
    for i in range(len(levels)):
        of = kind == i
        share = one_NB[of].mean(0)
        judged = bool(share.max() <= ENDS[1])
        mixing = _over(entropy[of], perfect[of]) if judged else float("nan")
        rows.append((int(of.sum()), int((share > 0).sum()), float(share.max()), mixing, judged))
    columns = ["cells", "batches", "largest", "mixing", "can_be_judged"]
    return pd.DataFrame(rows, pd.Index(levels, name="label"), columns)


def _warnings(by_label: pd.DataFrame, batch: str, unknown: int, n: int, looked_at: int) -> list[str]:
    said = []
    if len(by_label):
        alone = by_label.index[by_label["batches"] == 1]
        nearly = by_label.index[(by_label["batches"] > 1) & ~by_label["can_be_judged"]]
        if len(alone):
            said.append(
                f"{', '.join(alone)}: in one {batch} only, so that what sets these cells apart may be biology or "
                "technique, and no correction can be judged by them"
            )
        if len(nearly):
            said.append(f"{', '.join(nearly)}: nearly all in one {batch}, too few elsewhere to judge by")
    else:
        said.append(
            "no labels were given: if batches hold different kinds of cells, they ought not to mix wholly, and a "
            "mixing below 1 is right"
        )
    if unknown:
        said.append(f"{unknown:,} of {n:,} cells have no {batch} or label, and are left out")
    if looked_at < n - unknown:
        said.append(f"measured on {looked_at:,} of {n:,} cells, drawn at random")
    return said


# --- the plain representation ---------------------------------------------------------------------


def _has_counts(adata: ad.AnnData, layer: str | None) -> bool:
    try:
        _counts(adata, layer, np.arange(min(adata.n_obs, 200)))
    except DataError:
        return False
    return True


def _counts(adata: ad.AnnData, layer: str | None, at: np.ndarray) -> Any:
    if layer is not None and layer not in adata.layers:
        raise DataError(f"there is no layer {layer!r}; there are: {', '.join(map(str, adata.layers)) or 'none'}")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise DataError("the data has no X; name the layer with raw counts by counts_layer, or leave before out")
    counts = sp.csr_matrix(matrix[at], dtype=np.float32)
    check_counts(counts.data, f"layer {layer!r}" if layer is not None else "X")
    return counts


def _plain(adata: ad.AnnData, layer: str | None, at: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Return a representation of the counts that knows of no batches and no topics, and its name."""
    import scanpy as sc

    from .peaks import NAME

    counts = ad.AnnData(_counts(adata, layer, at))
    counts = counts[:, counts.X.getnnz(0) > 0].copy()
    n = max(1, min(COMPONENTS, min(counts.shape) - 1))
    if adata.var_names.astype(str).str.match(NAME).mean() > 0.5:
        return _lsi(counts.X, n, seed), "LSI"
    sc.pp.normalize_total(counts, target_sum=1e4)
    sc.pp.log1p(counts)
    if counts.n_vars > 2000:
        sc.pp.highly_variable_genes(counts, n_top_genes=2000)
    sc.pp.pca(counts, n_comps=n, random_state=seed)
    return np.asarray(counts.obsm["X_pca"]), "PCA"


def _lsi(counts: Any, n: int, seed: int) -> np.ndarray:
    matrix = CountMatrix.from_scipy(counts)
    lsi = learn_lsi(matrix, np.ones(counts.shape[1], bool), n + 1, seed)
    chunks = [weigh(sp.csr_array(chunk), lsi.idf) @ lsi.components for chunk in matrix.csr_chunks()]
    return np.concatenate(chunks)[:, 1:]  # the first is the depth
