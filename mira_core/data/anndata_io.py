"""AnnData in, counts out; results in, AnnData out. The only room that knows anndata."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..errors import DataError
from .counts import Cells, CountMatrix


def open_data(data: ad.AnnData | str | Path, *, backed: bool = False) -> ad.AnnData:
    """Return the AnnData, reading it first if a path to an .h5ad file is given; `backed` leaves X on the disk."""
    if isinstance(data, ad.AnnData):
        return data
    if not isinstance(data, str | Path):
        raise DataError(f"data must be an AnnData or the path of an .h5ad file; got {type(data).__name__}")
    path = Path(data)
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.suffix != ".h5ad":
        raise DataError(f"data must be an .h5ad file; got {path.name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files and repeated names; names are checked below
            return ad.read_h5ad(path, backed="r" if backed else None)
    except Exception as problem:
        raise DataError(f"{path.name} cannot be read as .h5ad: {problem}") from problem


def training_cells(data: ad.AnnData, options: Mapping[str, Any]) -> Cells:
    """Read what a model is fitted to, as its options say.

    Raises
    ------
    DataError
        If a layer or column is missing, counts are not counts, a cell or the selection is empty, or names repeat.
    """
    key = options["highly_variable_key"] or options["exogenous_key"]
    modelled = _flags(data, key)
    names = np.asarray(data.var_names[modelled], dtype=str)
    if len(names) < 2:
        raise DataError(f"at least 2 features must be selected; {_selection(key)} {len(names)}")
    if repeated := _repeated(names):
        raise DataError(
            f"names of modelled features must be unique; {_some(repeated)} repeat. Call adata.var_names_make_unique()"
        )
    if data.n_obs < 2:
        raise DataError(f"at least 2 cells are needed to train; got {data.n_obs}")
    chosen = _flags(data, options["endogenous_key"]) if options["endogenous_key"] else modelled
    endogenous = chosen[modelled]
    if (n := int((chosen & ~modelled).sum())) > 0:
        warnings.warn(
            f"{n} features of var[{options['endogenous_key']!r}] are not among the modelled ones; "
            "the encoder does not see them",
            stacklevel=3,
        )
    counts = _counts(data, modelled, options["counts_layer"])
    cells = Cells(counts, names, endogenous, *_columns(data, options))
    _refuse_empty_cells(cells, data.obs_names)
    if not endogenous.any() or counts.feature_totals()[endogenous].sum() == 0:
        raise DataError(
            f"the encoder has no features with counts: var[{options['endogenous_key']!r}] selects "
            f"{int(endogenous.sum())} of the modelled features"
        )
    return cells


def cells_of_model(data: ad.AnnData, options: Mapping[str, Any], features: np.ndarray, endogenous: np.ndarray) -> Cells:
    """Read the features of a fitted model, by name, whatever else the data has and in whatever order.

    Raises
    ------
    DataError
        If features are missing or repeat, or counts are not counts, or a cell is empty.
    """
    at = pd.Index(data.var_names).get_indexer_for(features) if data.var_names.is_unique else None
    if at is None:
        names = np.asarray(data.var_names, dtype=str)
        if repeated := sorted(set(_repeated(names)) & set(features)):
            raise DataError(f"names of the model's features must be unique in the data; {_some(repeated)} repeat")
        where = {n: i for i, n in enumerate(names)}
        at = np.array([where.get(f, -1) for f in features])
    if (missing := features[at < 0]).size:
        raise DataError(
            f"the data lacks {missing.size} of the model's {len(features)} features: {_some(missing)}. "
            "Predict on data with all features that the model was fitted to"
        )
    counts = _counts(data, at, options["counts_layer"])
    cells = Cells(counts, features, endogenous, *_columns(data, options))
    _refuse_empty_cells(cells, data.obs_names)
    return cells


def _selection(key: str | None) -> str:
    return f"var[{key!r}] selects" if key is not None else "the data has"


def _flags(data: ad.AnnData, key: str | None) -> np.ndarray:
    if key is None:
        return np.ones(data.n_vars, bool)
    column = data.var[_known(key, data.var.columns, "column of var")]
    if column.dtype != bool and not set(pd.unique(column)) <= {True, False}:
        raise DataError(f"var[{key!r}] must mark features by True and False; got values like {column.iloc[0]!r}")
    return column.to_numpy().astype(bool)


def _counts(data: ad.AnnData, columns: np.ndarray, layer: str | None) -> CountMatrix:
    where = f"layer {layer!r}" if layer is not None else "X"
    matrix = data.X if layer is None else data.layers[_known(layer, data.layers.keys(), "layer")]
    if matrix is None:
        raise DataError("the data has no X; name the layer with raw counts by counts_layer")
    if not isinstance(matrix, np.ndarray) and not sp.issparse(matrix):
        matrix = matrix[:] if not hasattr(matrix, "to_memory") else matrix.to_memory()
    if sp.issparse(matrix):
        m = sp.csr_array(matrix)
        if not (columns.dtype == bool and columns.all()):
            m = m[:, np.flatnonzero(columns) if columns.dtype == bool else columns]
        check_counts(m.data, where)
    else:
        m = np.asarray(matrix)[:, columns]
        check_counts(m, where)
        m = sp.csr_array(m.astype(np.float32, copy=False))  # exact, and scipy knows no half precision
    return CountMatrix(m)


def check_counts(values: np.ndarray, where: str) -> None:
    """Raise unless all values are non-negative whole numbers."""
    if values.dtype.kind not in "buif":
        raise DataError(f"{where} must hold numbers; got {values.dtype}")
    hint = "If another layer holds the raw counts, name it by counts_layer"
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise DataError(f"{where} must hold counts; it has NaN or infinite values")
        if values.size and (values.min() >= 0) and (off := values[values != np.rint(values)]).size:
            raise DataError(
                f"{where} must hold raw counts, whole numbers; it has fractions such as {off.flat[0]:.4g} "
                f"({off.size:,} of {values.size:,} values). It looks normalised or logged. {hint}"
            )
    if values.size and values.min() < 0:
        raise DataError(f"{where} must hold raw counts; it has negative values such as {values.min():.4g}. {hint}")
    if values.size and float(values.max()) > 2**24:
        raise DataError(f"{where} has a count of {values.max():.4g}; counts above 2^24 are not held exactly")


def _columns(data: ad.AnnData, options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Covariates N x 0 (until models with covariates come) and extra features N x F."""
    keys = options["extra_features_keys"] or []
    extra = np.zeros((data.n_obs, len(keys)), np.float32)
    for i, key in enumerate(keys):
        column = pd.to_numeric(data.obs[_known(key, data.obs.columns, "column of obs")], errors="coerce")
        extra[:, i] = column
        if not np.isfinite(extra[:, i]).all():
            raise DataError(f"obs[{key!r}] must hold finite numbers to be an extra feature")
    return np.zeros((data.n_obs, 0), np.float32), extra


def _refuse_empty_cells(cells: Cells, names: Iterable[str]) -> None:
    empty = np.flatnonzero(cells.counts.depths() == 0)
    if empty.size:
        some = _some(np.asarray(names, dtype=str)[empty])
        raise DataError(
            f"every cell must have counts in the modelled features; {empty.size} have none: {some}. "
            "Remove them, for example with scanpy.pp.filter_cells"
        )


def _known(key: str, known: Iterable[str], what: str) -> str:
    known = [str(k) for k in known]
    if key in known:
        return key
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f". There are: {_some(known) if known else 'none'}"
    raise DataError(f"there is no {what} {key!r}{hint}")


def _repeated(names: np.ndarray) -> list[str]:
    unique, n = np.unique(names, return_counts=True)
    return list(unique[n > 1])


def _some(names: Iterable[str], n: int = 5) -> str:
    names = list(names)
    return ", ".join(map(str, names[:n])) + (f" and {len(names) - n} more" if len(names) > n else "")


# --- results -> AnnData ---------------------------------------------------------------------------


def write_topics(data: ad.AnnData, theta: np.ndarray, umap_features: np.ndarray) -> None:
    """Write obsm['X_topic_compositions'], obsm['X_umap_features'] and obs['topic_0'], ..."""
    data.obsm["X_topic_compositions"] = theta
    data.obsm["X_umap_features"] = umap_features
    stale = [c for c in data.obs.columns if c.startswith("topic_") and c[6:].isdigit()]
    columns = {f"topic_{k}": theta[:, k] for k in range(theta.shape[1])}
    kept = data.obs.drop(columns=stale)
    data.obs = pd.concat([kept, pd.DataFrame(columns, index=kept.index)], axis=1)


def write_features(data: ad.AnnData, features: np.ndarray, name: str, values: np.ndarray) -> None:
    """Write a K x G table of the model's features to varm[name], n_vars x K; NaN for other features."""
    out = np.full((data.n_vars, len(values)), np.nan, np.float32)
    out[_positions(data, features)] = values.T
    data.varm[name] = out


def empty_layer(data: ad.AnnData, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an n_obs x n_vars array to fill, NaN outside the model's features, and their columns."""
    at = _positions(data, features)
    out = np.empty((data.n_obs, data.n_vars), np.float32)
    if len(at) < data.n_vars:
        out[:] = np.nan
    return out, at


def _positions(data: ad.AnnData, features: np.ndarray) -> np.ndarray:
    first = pd.Series(np.arange(data.n_vars), index=data.var_names)
    first = first[~first.index.duplicated()]
    return first.loc[features].to_numpy()
