"""What the topics of cells are: their features, how much they are used and by whom.

Shapes: N cells, G modelled features, K topics.
"""

from __future__ import annotations

import difflib
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from ..errors import DataError, OptionError
from . import matching
from .predicted import Predicted, Topics, compositions_of, mean_shares, topic_names, topics_of

PRESENT = 0.05  # share of a cell from which a topic is in it
DEAD = 0.001  # share of the cells, below which the topic is in hardly any
FEW_VALUES = 20  # whole numbers of so many values are taken for categories
CHUNK = 65536  # cells


def describe_topics(adata: ad.AnnData, top: int = 10) -> pd.DataFrame:
    """Tell what each topic is, how much it is used, and whether it is needed.

    Parameters
    ----------
    adata
        Cells with topics, as `TopicModel.predict` writes them.
    top
        Features that stand for a topic.

    Returns
    -------
    pandas.DataFrame
        A row for each topic:

        ``topic``
            topic_0, topic_1, ...
        ``mean_share``
            Its mean share of a cell.
        ``largest_in``
            Share of the cells in which no topic is larger; of equal ones the first counts.
        ``present_in``
            Share of the cells of which it makes up 0.05 or more.
        ``top_features``
            The `top` features that say most about it, as one text (see `top_features`).
        ``redundancy``
            Greatest correlation with another topic: of the activations over the features, weighted by how abundant
            features are (mean over the topics).
        ``redundant_with``
            The topic of that correlation, where it is above 0.8; else None.
        ``dead``
            Whether it is present (0.05 or more) in fewer than 1 of 1,000 cells.

    Raises
    ------
    DataError
        If the cells have no topics.
    """
    theta, topics = compositions_of(adata), topics_of(adata)
    largest, present = _counts(theta)
    if len(topics.names) > 1:
        near, redundancy = matching.nearest(topics.activations, topics.weights)
    else:
        near, redundancy = np.zeros(1, int), np.full(1, np.nan)
    return pd.DataFrame(
        {
            "topic": topics.names,
            "mean_share": mean_shares(theta),
            "largest_in": largest / len(theta),
            "present_in": present / len(theta),
            "top_features": [", ".join(names) for names in top_features(topics, top)],
            "redundancy": redundancy,
            "redundant_with": [
                topics.names[j] if r > matching.REDUNDANT else None for j, r in zip(near, redundancy, strict=True)
            ],
            "dead": present < DEAD * len(theta),
        }
    )


def _counts(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the cells in which each topic is the largest, and in which it is present, K each."""
    K = theta.shape[1]
    largest, present = np.zeros(K, int), np.zeros(K, int)
    for start in range(0, len(theta), CHUNK):
        chunk = theta[start : start + CHUNK]
        largest += np.bincount(chunk.argmax(1), minlength=K)
        present += (chunk >= PRESENT).sum(0)
    return largest, present


def top_features(data: Predicted | Topics, top: int = 10) -> list[list[str]]:
    """Return the features that say most about each topic, most telling first, under readable names.

    Ranked by p log(p / q), with p the feature's share in the topic and q its share in the average cell, so that
    neither housekeeping genes nor the rarest ones lead: the terms of the Kullback-Leibler divergence of the two.
    """
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
        raise OptionError(f"top must be an integer of at least 1; got {top!r}")
    topics = data if isinstance(data, Topics) else topics_of(data)
    return [topics.labels[order[:top]].tolist() for order in np.argsort(-saying(topics), axis=1, kind="stable")]


def saying(topics: Topics) -> np.ndarray:
    """Return how much each feature says about each topic, p log(p / q) in nats, K x G."""
    p = topics.compositions
    return np.asarray(p * np.log(np.maximum(p, 1e-12) / np.maximum(topics.average, 1e-12)))


def rank_topics(adata: Predicted, feature: str) -> pd.Series:
    """Rank the topics by what they do to a feature.

    Parameters
    ----------
    adata
        Cells with topics, or a fitted model.
    feature
        Name as the data has it, or the readable one (a symbol where the names are identifiers).

    Returns
    -------
    pandas.Series
        Activations in standard deviations, by topic, the greatest first; its name is the feature's.

    Raises
    ------
    DataError
        If the feature is not modelled.
    """
    topics = topics_of(adata)
    at = np.flatnonzero(topics.features == feature)
    if not at.size:
        at = np.flatnonzero(topics.labels == feature)
    if not at.size:
        near = difflib.get_close_matches(str(feature), topics.labels.tolist(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{feature!r} is not among the {len(topics.features)} modelled features{hint}")
    ranked = pd.Series(topics.activations[:, at[0]], index=pd.Index(topics.names, name="topic"), name=str(feature))
    return ranked.sort_values(ascending=False, kind="stable")


def topics_by(adata: ad.AnnData, column: str, bins: int = 5) -> pd.DataFrame:
    """Average the topics over the categories of a column.

    Parameters
    ----------
    adata
        Cells with topics.
    column
        Of ``obs``. Text, truth values, categories, and whole numbers of at most 20 different values are taken as they
        are; other numbers are divided into quantiles.
    bins
        How many quantiles; fewer where values repeat so often that these coincide.

    Returns
    -------
    pandas.DataFrame
        A row for each category that has cells, in its order: ``cells``, how many there are, and topic_0, topic_1, ...,
        the mean shares of their topics. Cells without a value are in no row.

    Raises
    ------
    DataError
        If there is no such column, or it has no values.
    """
    theta = compositions_of(adata)
    codes, levels = categories_of(obs_column(adata, column), column, bins)
    sums, cells = sums_by(theta, codes, len(levels))
    kept = cells > 0
    out = pd.DataFrame(sums[kept] / cells[kept, None], columns=topic_names(theta.shape[1]))
    out.insert(0, "cells", cells[kept])
    out.index = pd.Index([level for level, keep in zip(levels, kept, strict=True) if keep], name=column)
    return out


def obs_column(adata: ad.AnnData, column: str) -> pd.Series:
    """Return a column of ``obs``, or say which there are."""
    if column in adata.obs:
        return adata.obs[column]
    names = [str(c) for c in adata.obs.columns]
    near = difflib.get_close_matches(str(column), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names[:10]) or 'none'}"
    raise DataError(f"obs has no column {column!r}; {hint}")


def categories_of(values: pd.Series, name: str, bins: int = 5) -> tuple[np.ndarray, list[Any]]:
    """Return the category of each cell by its number, -1 if it has none, and the categories (see `topics_by`)."""
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise OptionError(f"bins must be an integer of at least 1; got {bins!r}")
    numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if numbers:
        finite = values.where(np.isfinite(values.to_numpy(float, na_value=np.nan)))
        seen = finite.dropna()
        if seen.nunique() > (FEW_VALUES if (seen % 1 == 0).all() else bins):
            finite = pd.qcut(finite.astype(float), bins, duplicates="drop", precision=3)
        else:
            whole = len(seen) and bool((seen % 1 == 0).all())
            finite = finite.astype("Int64" if whole else float)
        values = finite
    categories = values.astype("category").cat
    levels = [str(v) if isinstance(v, pd.Interval) else v for v in categories.categories]
    codes = categories.codes.to_numpy()
    if not (codes >= 0).any():
        raise DataError(f"obs[{name!r}] has no values; choose another column")
    return codes, levels


def sums_by(theta: np.ndarray, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the rows of each of `n` categories, n x K, and their numbers, n; rows with -1 are left out."""
    import scipy.sparse as sp

    at = np.flatnonzero(codes >= 0)
    member = sp.csr_array((np.ones(len(at)), (codes[at], at)), shape=(n, len(theta)))
    return np.asarray(member @ theta), np.bincount(codes[at], minlength=n)
