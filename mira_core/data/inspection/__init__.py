"""What is wrong with a data set, found before a model is trained on it: `inspect` returns `Finding` objects."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import pandas as pd

from ...errors import OptionError
from .. import tally as tallies
from ..anndata_io import _flags, _known
from ..qc import measured, mitochondrial
from ..tally import RAW, Tally
from . import cells, covariates, features, layers
from .finding import SEVERITIES, Finding

MOST_CELLS = 200_000
MT_GENES = 5  # of the thirteen that code for proteins, from where their share says something
TYPES = ("expression", "accessibility")


def inspect(
    adata: ad.AnnData,
    *,
    feature_type: str | None = None,
    counts_layer: str | None = None,
    highly_variable_key: str | None = None,
    categorical_covariates: Sequence[str] | str | None = None,
    continuous_covariates: Sequence[str] | str | None = None,
    most_cells: int | None = MOST_CELLS,
) -> list[Finding]:
    """Look for what would harm a topic model of these cells.

    Layers are judged by some cells; the one with raw counts is read once, a chunk at a time, so that a file of any
    size needs little memory if it was opened with ``mira.data.open_data(path, backed=True)``.

    Parameters
    ----------
    adata
        N x G, in memory or on the disk; not changed.
    feature_type
        ``"expression"`` or ``"accessibility"``. None: told by the names of the features.
    counts_layer
        Layer that is to hold the counts. None: ``X``, or what else does.
    highly_variable_key
        Column of ``var`` that marks the features to model. None: all.
    categorical_covariates, continuous_covariates
        Columns of ``obs`` to correct for. None for both: columns whose names sound like batches are looked at, and
        what is found is told as ``"info"``.
    most_cells
        Cells whose counts are read; of more, a sample in blocks spread over all, and findings say so. None: all.

    Returns
    -------
    list of Finding
        Errors first, then warnings, then what is good to know. Empty if nothing was found.

    Raises
    ------
    DataError
        If there is no such layer or column.
    OptionError
        If `feature_type` is unknown.
    """
    if feature_type not in (None, *TYPES):
        raise OptionError(f"feature_type must be one of {', '.join(TYPES)}; got {feature_type!r}")
    categorical, continuous = _columns(adata, categorical_covariates), _columns(adata, continuous_covariates)
    stored = tallies.stored(adata)
    if counts_layer is not None:
        _known(counts_layer, [str(s.name) for s in stored if s.name not in (None, RAW)], "layer")
    modelled = None if highly_variable_key is None else _flags(adata, highly_variable_key)

    found = [*cells.check_number(adata.n_obs), *cells.check_names(adata.obs_names)]
    counts, told = layers.find_counts([layers.judge(s) for s in stored], counts_layer, adata.n_obs)
    found += told
    var = adata.raw.var if counts is not None and counts.name == RAW else adata.var
    t = None
    if counts is not None and adata.n_obs:
        mt = mitochondrial(var)
        marks = {} if mt is None else {"mt": mt[0]}
        if modelled is not None and counts.name != RAW:
            marks["modelled"] = modelled
        t = tallies.tally(counts, marks, most_cells)
        found += layers.check_values(counts, t)
        t = t if t.are_counts else None
    kind = feature_type or features.guess_type(var, t is not None and t.largest == 1)
    found += features.check_names(var, feature_type)
    if t is not None:
        key = highly_variable_key if "modelled" in t.marked else None
        found += _check_counts(t, adata if counts is not None and counts.name != RAW else _of_raw(adata), kind, key)
    if kind == "expression":
        found += features.check_number_of_genes(var, highly_variable_key)
    found += covariates.check_covariates(adata.obs, categorical, continuous)
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))


def _check_counts(t: Tally, adata: ad.AnnData, kind: str, key: str | None) -> list[Finding]:
    qc = measured(t, adata)
    found = [*cells.check_empty(t, key), *features.check_empty(t)]
    found += cells.check_outliers(t, qc, "gene" if kind == "expression" else "peak")
    if kind == "expression":
        mt = mitochondrial(adata.var)
        if mt is not None and (t.feature_totals[mt[0]] > 0).sum() >= MT_GENES:
            found += cells.check_mitochondrial(t, qc, mt[1])
    else:
        found += features.check_peaks(t)
    return found


def _of_raw(adata: ad.AnnData) -> ad.AnnData:
    """Return the names of raw's features with those of the cells."""
    return ad.AnnData(obs=pd.DataFrame(index=adata.obs_names), var=adata.raw.var)


def _columns(adata: ad.AnnData, names: Sequence[str] | str | None) -> list[str] | None:
    if names is None:
        return None
    names = [names] if isinstance(names, str) else list(names)
    return [_known(name, adata.obs.columns, "column of obs") for name in names]


__all__ = ["Finding", "inspect"]
