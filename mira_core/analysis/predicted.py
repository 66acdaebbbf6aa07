"""What is asked of: cells with topics, as `TopicModel.predict` writes them, or a fitted model itself.

Shapes: N cells, G modelled features, K topics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import anndata as ad
import numpy as np

from ..data.qc import SYMBOLS
from ..errors import DataError

if TYPE_CHECKING:
    from ..estimators.fitted import FittedModel

Predicted: TypeAlias = "ad.AnnData | FittedModel"
THETA, BETA, ACTIVATIONS = "X_topic_compositions", "topic_feature_compositions", "topic_feature_activations"
IDENTIFIER = r"^ENS[A-Z]*G\d{6,}"  # Ensembl's


@dataclass(frozen=True)
class Topics:
    """What topics are made of.

    Attributes
    ----------
    features, labels
        Names of the modelled features as the data has them, and for people (see `readable`), G.
    compositions
        Each topic's distribution over the features, K x G, rows sum to 1.
    activations
        How far each topic moves each feature, in standard deviations, K x G.
    average
        Share of each feature in the average cell, G.
    """

    features: np.ndarray
    labels: np.ndarray
    compositions: np.ndarray
    activations: np.ndarray
    average: np.ndarray

    @property
    def names(self) -> list[str]:
        """Names of the topics: topic_0, topic_1, ..."""
        return topic_names(len(self.compositions))

    @property
    def weights(self) -> np.ndarray:
        """How abundant features are, the mean over topics: weights for correlations of activations, G."""
        return np.asarray(self.compositions.mean(0))


def topic_names(n: int) -> list[str]:
    """Return names of topics, as `predict` names their columns."""
    return [f"topic_{k}" for k in range(n)]


def topics_of(source: Predicted) -> Topics:
    """Read what topics are made of.

    Parameters
    ----------
    source
        Cells with ``varm['topic_feature_compositions']`` and ``varm['topic_feature_activations']``, NaN for features
        that are not modelled; or a fitted model. Of a model the average cell is that of the training cells, of cells
        it is theirs, by ``obsm['X_topic_compositions']``.

    Raises
    ------
    DataError
        If the fields are missing, or differ in shape.
    NotFitted
        If the model is not.
    """
    if not isinstance(source, ad.AnnData):
        if not hasattr(source, "topic_feature_activations"):
            raise DataError(f"cells with topics must be an AnnData, or a fitted model; got {type(source).__name__}")
        compositions, activations = source.topic_feature_compositions(), source.topic_feature_activations()
        return Topics(source.features, source.features, compositions, activations, source.mean_profile)
    theta = compositions_of(source)
    found = []
    for name in (BETA, ACTIVATIONS):
        if name not in source.varm:
            raise DataError(f"varm[{name!r}] is missing; call model.predict(adata) first")
        values = np.asarray(source.varm[name])
        if values.ndim != 2 or values.shape[1] != theta.shape[1]:
            raise DataError(
                f"varm[{name!r}] must be features x {theta.shape[1]} topics, as obsm[{THETA!r}] has; got shape "
                f"{values.shape}. Call model.predict(adata) with one model"
            )
        found.append(values)
    at = np.flatnonzero(np.isfinite(found[0]).all(1) & np.isfinite(found[1]).all(1))
    if not len(at):
        raise DataError(f"varm[{BETA!r}] has no feature without NaN; call model.predict(adata) anew")
    beta = np.asarray(found[0][at].T, float)
    return Topics(
        source.var_names.to_numpy(str)[at], readable(source)[at], beta, np.asarray(found[1][at].T, float),
        mean_shares(theta) @ beta,
    )  # fmt: skip


def compositions_of(adata: ad.AnnData) -> np.ndarray:
    """Return ``obsm['X_topic_compositions']``, N x K, not copied.

    Raises
    ------
    DataError
        If it is missing, or is not a table of finite numbers with rows.
    """
    if not isinstance(adata, ad.AnnData):
        raise DataError(f"cells with topics must be an AnnData; got {type(adata).__name__}. Call model.predict(adata)")
    if THETA not in adata.obsm:
        raise DataError(f"obsm[{THETA!r}] is missing; call model.predict(adata) first")
    theta = np.asarray(adata.obsm[THETA])
    if theta.ndim != 2 or 0 in theta.shape or theta.dtype.kind != "f":
        raise DataError(
            f"obsm[{THETA!r}] must be cells x topics with a cell and a topic at least; got {theta.dtype} of shape "
            f"{theta.shape}"
        )
    if not np.isfinite(theta.sum(dtype=np.float64)) or theta.min() < 0:
        raise DataError(f"obsm[{THETA!r}] must hold shares; it has negative, NaN or infinite values. Predict anew")
    return theta


def mean_shares(theta: np.ndarray) -> np.ndarray:
    """Return the mean share of each topic, K."""
    return np.asarray(theta.mean(0, dtype=np.float64))


def readable(adata: ad.AnnData) -> np.ndarray:
    """Return names of features for people: symbols, where the names are identifiers and a column has the symbols."""
    column = next((c for c in SYMBOLS if c in adata.var), None)
    if column is None or not adata.var_names.astype(str).str.match(IDENTIFIER).mean() > 0.5:
        return adata.var_names.to_numpy(str)
    symbols = adata.var[column].astype(object).where(adata.var[column].notna(), adata.var_names)
    return symbols.to_numpy(str)
