"""Topics matched with topics, by what they do to the features.

Shapes: K topics of one model, J of another, G features.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..errors import DataError
from .predicted import Predicted, topics_of

REDUNDANT = 0.8  # correlation of activations above which a topic resembles another


def match_topics(a: Predicted, b: Predicted, top: int = 20) -> pd.DataFrame:
    """Match the topics of two models one to one, and say what the second gained and lost.

    Pairs are chosen so that the sum of their correlations is greatest (Hungarian method). The correlation is that of
    the activations over the features that both model, matched by name, weighted by how abundant features are in the
    topics of the first.

    Parameters
    ----------
    a, b
        Cells with topics, or fitted models; of the same features, at least in part. The cells need not be the same.
    top
        So many features, by activation, stand for a topic.

    Returns
    -------
    pandas.DataFrame
        A row for each pair, the most alike first, then those that nothing is left for: ``topic``, ``other`` (None: it
        has none), their weighted ``correlation``, how many of the top features they ``share``, and those that were
        ``gained`` and ``lost``.

    Raises
    ------
    DataError
        If the models have less than half of their features in common.
    """
    one, two = topics_of(a), topics_of(b)
    theirs = pd.Index(two.features)
    at = theirs.get_indexer(one.features)
    both = np.flatnonzero(at >= 0)
    if len(both) < min(len(at), len(theirs)) / 2:
        raise DataError(
            f"topics can be compared where models share their features; these share {len(both)} of {len(at)} and "
            f"{len(theirs)}"
        )
    names = one.features[both]
    x, y = one.activations[:, both], two.activations[:, at[both]]
    alike = correlations(x, y, one.weights[both])
    rows, columns = best_pairs(alike)
    Pair = tuple[int | None, int | None, float]
    pairs: list[Pair] = [(int(i), int(j), alike[i, j]) for i, j in zip(rows, columns, strict=True)]
    pairs.sort(key=lambda pair: -pair[2])
    alone: list[Pair] = [(i, None, np.nan) for i in range(len(x)) if i not in rows]
    alone += [(None, j, np.nan) for j in range(len(y)) if j not in columns]

    def leading(activations: np.ndarray, k: int | None) -> list[str]:
        return [] if k is None else names[np.argsort(-activations[k], kind="stable")[:top]].tolist()

    told = []
    for i, j, r in [*pairs, *alone]:
        before, after = leading(x, i), leading(y, j)
        gained, lost = [f for f in after if f not in before], [f for f in before if f not in after]
        told.append((None if i is None else one.names[i], None if j is None else two.names[j], r,
                     len(set(before) & set(after)), gained, lost))  # fmt: skip
    return pd.DataFrame(told, columns=["topic", "other", "correlation", "share", "gained", "lost"])


def correlations(a_KG: np.ndarray, b_JG: np.ndarray, weight_G: np.ndarray) -> np.ndarray:
    """Return the weighted correlation over features of each row with each, K x J."""
    a, b = ((x - np.average(x, axis=1, weights=weight_G)[:, None]) * np.sqrt(weight_G) for x in (a_KG, b_JG))
    lengths = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return np.asarray(a @ b.T / np.maximum(lengths, 1e-12))


def best_pairs(alike_KJ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns that are paired, one to one, so that the sum of their likeness is greatest."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(-alike_KJ)


def nearest(activations_KG: np.ndarray, weight_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each topic which other one resembles it most, and their correlation, K each; -inf if it is alone."""
    within = correlations(activations_KG, activations_KG, weight_G)
    np.fill_diagonal(within, -np.inf)
    return within.argmax(1), within.max(1)
