"""Batches: what a feature's counts owe to them, and which kinds of cells only one of them has."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from mira_core.analysis import Mixing, batch_mixing
from mira_core.analysis.mixing import CELLS

from .values import Progress, Values


def alone(labels: pd.Series, batches: pd.Series) -> pd.DataFrame:
    """Return the labels that occur in one batch only: ``label``, ``batch``, ``cells``; none if there is one batch."""
    table = pd.crosstab(labels.array, batches.array)
    if table.shape[1] < 2:
        return pd.DataFrame(columns=["label", "batch", "cells"])
    one = table[(table > 0).sum(axis=1) == 1]
    return pd.DataFrame(
        {"label": one.index.astype(str), "batch": one.idxmax(axis=1).astype(str).to_numpy(),
         "cells": one.max(axis=1).to_numpy()}
    )  # fmt: skip


def effect_by_batch(values: Values, feature: str, batches: pd.Series, progress: Progress) -> pd.DataFrame:
    """Average the technical effect on a feature over the cells of each batch.

    Returns
    -------
    pandas.DataFrame
        ``batch``, ``cells``, ``effect`` in natural-log units, ``factor``: what it multiplies frequencies with.
    """
    effect = values.batch_effect(feature, progress)
    c = batches.astype("category").cat
    codes, known = c.codes.to_numpy(), c.codes.to_numpy() >= 0
    n = np.bincount(codes[known], minlength=len(c.categories))
    mean = np.bincount(codes[known], weights=effect[known], minlength=len(c.categories)) / np.maximum(n, 1)
    frame = pd.DataFrame({"batch": [str(x) for x in c.categories], "cells": n, "effect": mean, "factor": np.exp(mean)})
    return frame[frame["cells"] > 0].reset_index(drop=True)


def mixing(values: Values, batches: pd.Series, labels: pd.Series | None, seed: int = 0) -> Mixing:
    """Measure how well batches mix, by the topics and by the counts; of many cells, some drawn at random.

    Raises
    ------
    DataError
        If there is one batch only, or the counts cannot be read.
    """
    cells = values.cells
    known = batches.notna() if labels is None else batches.notna() & labels.notna()
    at = np.flatnonzero(known.to_numpy())
    if len(at) > CELLS:
        at = np.sort(np.random.default_rng(seed).choice(at, CELLS, replace=False))
    counted = "raw" in values.ways()
    obs = pd.DataFrame({"batch": batches.array[at].astype(str)}, index=pd.RangeIndex(len(at)).astype(str))
    if labels is not None:
        obs["label"] = np.asarray(labels.array[at].astype(str))
    base = cells.topics_only
    x, features = values.rows(at) if counted else (None, [])
    drawn = ad.AnnData(X=x, obs=obs, var=pd.DataFrame(index=features))
    for name, stored in base.obsm.items():
        drawn.obsm[name] = np.asarray(stored)[at]
    return batch_mixing(drawn, "batch", None if labels is None else "label", before=counted, seed=seed)
