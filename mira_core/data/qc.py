"""Quality of cells and features in the names that scanpy's users know, and thresholds that the data suggest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from ..errors import DataError
from . import tally as tallies
from .anndata_io import _known
from .tally import RAW, Stored, Tally

MITOCHONDRIAL = r"(?i)^mt[-.]"
SYMBOLS = ("gene_symbols", "gene_symbol", "symbol", "feature_name", "gene_name", "gene_names", "gene_short_name")
N_MADS = {"total_counts": 5.0, "n_genes_by_counts": 5.0, "pct_counts_mt": 3.0}
LEAST_PCT_MT = 8.0  # a limit below this would drop healthy cells where hardly any have such counts


@dataclass(frozen=True)
class QC:
    """What `qc` found.

    Attributes
    ----------
    cells
        By cell: ``total_counts``, ``n_genes_by_counts`` (features seen, peaks too), and where gene names tell
        ``total_counts_mt`` and ``pct_counts_mt``.
    features
        By feature: ``total_counts``, ``n_cells_by_counts``, ``mean_counts``, ``pct_dropout_by_counts``.
    thresholds
        By metric of cells: ``lower``, ``upper`` (NaN: no limit), ``median``, ``n_mads``, ``n_below``, ``n_above``.
    """

    cells: pd.DataFrame
    features: pd.DataFrame
    thresholds: pd.DataFrame


def qc(adata: ad.AnnData, layer: str | None = None) -> QC:
    """Measure the quality of cells and features.

    The numbers are those of ``scanpy.pp.calculate_qc_metrics``; counts that were left on the disk are read a chunk at
    a time. Nothing is written to `adata`.

    Parameters
    ----------
    adata
        N x G raw counts, in memory or on the disk.
    layer
        Layer with the counts. None: ``X``.

    Returns
    -------
    QC
        With thresholds at a number of median absolute deviations (MAD, not scaled) from the median: 5 of log(1 + x)
        for counts and features, on both sides, and 3 for the mitochondrial share, above it and at 8 % or more
        (after Heumos et al., Nature Reviews Genetics 2023, https://doi.org/10.1038/s41576-023-00586-w).

    Raises
    ------
    DataError
        If there is no such layer, or it holds no counts.
    """
    found = {s.name: s for s in tallies.stored(adata) if s.name != RAW}
    if layer is not None:
        _known(layer, [str(k) for k in found if k is not None], "layer")
    elif None not in found:
        raise DataError("the data has no X; name the layer with raw counts")
    matrix = found[layer]
    mt = mitochondrial(adata.var)
    t = tallies.tally(matrix, {} if mt is None else {"mt": mt[0]})
    if not t.are_counts:
        raise DataError(
            f"{matrix.label} must hold raw counts; it has {t.n_fractions:,} fractions, {t.n_negative:,} negative "
            f"values and {t.n_bad:,} that are NaN or infinite. mira.data.inspect says where raw counts are"
        )
    return measured(t, adata)


def measured(t: Tally, adata: ad.AnnData) -> QC:
    """Put a pass into tables."""
    cells = pd.DataFrame(
        {"n_genes_by_counts": t.features_seen, "total_counts": t.totals}, index=adata.obs_names[t.rows]
    )
    if "mt" in t.marked:
        cells["total_counts_mt"] = t.marked["mt"]
        with np.errstate(invalid="ignore"):
            cells["pct_counts_mt"] = 100 * t.marked["mt"] / t.totals
    n = max(1, len(t.rows))
    features = pd.DataFrame(
        {
            "n_cells_by_counts": t.cells_seen,
            "mean_counts": t.feature_totals / n,
            "pct_dropout_by_counts": 100 * (1 - t.cells_seen / n),
            "total_counts": t.feature_totals,
        },
        index=adata.var_names,
    )
    return QC(cells, features, thresholds(cells))


def thresholds(cells: pd.DataFrame) -> pd.DataFrame:
    """Suggest limits for the metrics of cells; empty cells are left out of the medians."""
    rows: dict[str, dict[str, Any]] = {}
    for name, n_mads in N_MADS.items():
        if name not in cells:
            continue
        share = name == "pct_counts_mt"
        x = cells[name].to_numpy(float)
        known = x[np.isfinite(x)] if share else x[x > 0]
        if not known.size:
            continue
        scale = known if share else np.log1p(known)
        middle = np.median(scale)
        reach = n_mads * np.median(np.abs(scale - middle))
        lower, upper = np.nan, np.nan
        if share:
            upper = max(middle + reach, LEAST_PCT_MT)
        elif reach > 0:
            lower, upper = np.expm1(middle - reach), np.expm1(middle + reach)
        rows[name] = {
            "lower": lower, "upper": upper, "median": float(np.median(known)), "n_mads": n_mads,
            "n_below": int((x < lower).sum()), "n_above": int((x > upper).sum()),
        }  # fmt: skip
    columns = ["lower", "upper", "median", "n_mads", "n_below", "n_above"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def mitochondrial(var: pd.DataFrame) -> tuple[np.ndarray, str | None] | None:
    """Find the mitochondrial genes by name.

    Returns
    -------
    tuple or None
        Which features they are, and the column of ``var`` with the names; None if these are ``var_names``. None if
        there are no such genes.
    """
    for column in (None, *(c for c in SYMBOLS if c in var.columns)):
        found = mitochondrial_names(var, column)
        if found.any():
            return found, column
    return None


def mitochondrial_names(var: pd.DataFrame, column: str | None) -> np.ndarray:
    """Tell which names begin as those of mitochondrial genes do."""
    names = var.index.to_series() if column is None else var[column]
    return names.astype(str).str.contains(MITOCHONDRIAL).to_numpy(bool)


def matrix_of(adata: ad.AnnData, name: str | None) -> Stored:
    """Return a matrix by its name."""
    return next(s for s in tallies.stored(adata) if s.name == name)
