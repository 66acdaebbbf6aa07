"""AnnData in, counts out; results in, AnnData out. Files become AnnData in `formats`."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..errors import DataError
from . import formats
from .counts import Cells, CountMatrix
from .covariates import Coding, GetColumn, learn_coding

CHUNK_VALUES = 2**24  # entries, zeros included, that are read at once where a file is streamed


def open_data(data: ad.AnnData | str | Path, *, backed: bool = False, part: str | None = None) -> ad.AnnData:
    """Return the AnnData, reading it first if a path is given.

    Parameters
    ----------
    data
        AnnData, or the path of an .h5ad, .h5mu, .loom, 10x .h5, .zarr or .zarr.zip file, or of a 10x matrix folder.
        The path may end in ``#`` and the part, as in ``"cells.h5mu#rna"``.
    backed
        Leave X, layers and raw of .h5ad, .h5mu and .zarr on the disk: they are read where they are sliced.
    part
        The modality of an .h5mu file, the genome or type of features of a 10x file; needed if there are several.

    Raises
    ------
    DataError
        If there is no such file, it is damaged, of another format or larger than memory, or a part must be chosen.
    """
    if isinstance(data, ad.AnnData):
        return data
    return formats.open_file(_path(data), backed=backed, part=part)


def _path(data: Any) -> str | Path:
    if not isinstance(data, str | Path):
        raise DataError(
            "data must be an AnnData, the path of an .h5ad file or of a folder that write_ondisk_dataset wrote, or of "
            f"another format that open_data reads; got {type(data).__name__}"
        )
    return data


# --- which features -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """The features a model has of a data set.

    Attributes
    ----------
    columns
        Their columns in the data, in the model's order, G.
    features, endogenous
        As in `Cells`.
    """

    columns: np.ndarray
    features: np.ndarray
    endogenous: np.ndarray


def select(data: ad.AnnData, options: Mapping[str, Any]) -> Selection:
    """Choose the features that a model is to be fitted to, as its options say.

    Raises
    ------
    DataError
        If a column is missing, fewer than two features are selected, or names repeat.
    """
    key = options["highly_variable_key"] or options["exogenous_key"]
    modelled = _flags(data, key)
    names = np.asarray(data.var_names[modelled], dtype=str)
    if len(names) < 2:
        selection = f"var[{key!r}] selects" if key is not None else "the data has"
        raise DataError(f"at least 2 features must be selected; {selection} {len(names)}")
    if repeated := _repeated(names):
        raise DataError(
            f"names of modelled features must be unique; {_some(repeated)} repeat. Call adata.var_names_make_unique()"
        )
    chosen = _flags(data, options["endogenous_key"]) if options["endogenous_key"] else modelled
    if (n := int((chosen & ~modelled).sum())) > 0:
        warnings.warn(
            f"{n} features of var[{options['endogenous_key']!r}] are not among the modelled ones; "
            "the encoder does not see them",
            stacklevel=4,
        )
    return Selection(np.flatnonzero(modelled), names, chosen[modelled])


def find(data: ad.AnnData, features: np.ndarray, endogenous: np.ndarray) -> Selection:
    """Find the features of a fitted model, by name, whatever else the data has and in whatever order.

    Raises
    ------
    DataError
        If features are missing or repeat.
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
            "Use data with all features that the model was fitted to"
        )
    return Selection(at, features, endogenous)


def _flags(data: ad.AnnData, key: str | None) -> np.ndarray:
    if key is None:
        return np.ones(data.n_vars, bool)
    column = data.var[_known(key, data.var.columns, "column of var")]
    if column.dtype != bool and (others := [v for v in pd.unique(column).tolist() if v not in {True, False}]):
        raise DataError(f"var[{key!r}] must mark features by True and False; got values like {others[0]!r}")
    return column.to_numpy().astype(bool)


# --- cells ----------------------------------------------------------------------------------------


def training_cells(data: ad.AnnData, options: Mapping[str, Any]) -> Cells:
    """Read what a model is fitted to, as its options say.

    Raises
    ------
    DataError
        If a layer or column is missing, counts are not counts, a cell or the selection is empty, or names repeat.
    """
    chosen = select(data, options)
    column = obs_column(data.obs)
    return _cells(data, options, chosen, learn_coding(column, options), column)


def cells_of_model(
    data: ad.AnnData, options: Mapping[str, Any], features: np.ndarray, endogenous: np.ndarray, coding: Coding
) -> Cells:
    """Read the cells for a fitted model; its features by name, covariates coded as in training.

    Raises
    ------
    DataError
        If features are missing or repeat, counts are not counts, a cell is empty, or a category is unknown.
    """
    return _cells(data, options, find(data, features, endogenous), coding, obs_column(data.obs))


def _cells(data: ad.AnnData, options: Mapping[str, Any], chosen: Selection, coding: Coding, column: GetColumn) -> Cells:
    layer = options["counts_layer"]
    counts = CountMatrix.from_scipy(clean(_in_memory(_stored(data, layer)), chosen.columns, layer, is_binary(options)))
    cells = make_cells(counts, chosen, coding, column)
    refuse_empty_cells(cells.counts.depths(), data.obs_names)
    return cells


def make_cells(counts: CountMatrix, chosen: Selection, coding: Coding, column: GetColumn) -> Cells:
    """Put counts and coded columns together."""
    n = len(counts)
    return Cells(
        counts, chosen.features, chosen.endogenous, coding,
        coding.covariates(column).reshape(n, len(coding.names)),
        coding.extra_features(column).reshape(n, len(coding.extra)),
    )  # fmt: skip


def check_encoder_features(cells: Cells, options: Mapping[str, Any]) -> None:
    """Raise unless there are features for the encoder."""
    if not cells.endogenous.any() or cells.counts.feature_totals()[cells.endogenous].sum() == 0:
        raise DataError(
            f"the encoder has no features with counts: var[{options['endogenous_key']!r}] selects "
            f"{int(cells.endogenous.sum())} of the modelled features"
        )


def is_binary(options: Mapping[str, Any]) -> bool:
    """Whether counts are reduced to present and absent: a peak is open or not."""
    return options["feature_type"] == "accessibility"


def obs_column(obs: pd.DataFrame) -> GetColumn:
    """Return a function that gets a column of ``obs`` by name."""
    return lambda key: obs[_known(key, obs.columns, "column of obs")]


def _stored(data: ad.AnnData, layer: str | None) -> Any:
    try:
        matrix = data.X if layer is None else data.layers[_known(layer, data.layers.keys(), "layer")]
    except KeyError:  # how an AnnData that is read from the disk says that it has none
        matrix = None
    if matrix is None:
        raise DataError("the data has no X; name the layer with raw counts by counts_layer")
    return matrix


def _in_memory(matrix: Any) -> Any:
    if isinstance(matrix, np.ndarray) or sp.issparse(matrix):
        return matrix
    with from_disk():
        return formats.checked(matrix.to_memory(), "the matrix") if hasattr(matrix, "to_memory") else matrix[:]


@contextmanager
def from_disk() -> Iterator[None]:
    """Tell what goes wrong in reading counts that were left on the disk."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as problem:
        raise DataError(f"counts cannot be read from the file, which may be damaged: {problem}") from problem


def clean(matrix: Any, columns: np.ndarray, layer: str | None, binary: bool) -> sp.csr_array:
    """Check counts and return those of some columns, in that order; all ones if `binary`."""
    where = f"layer {layer!r}" if layer is not None else "X"
    if sp.issparse(matrix):
        m = sp.csr_array(matrix)
        if len(columns) != m.shape[1] or (columns != np.arange(len(columns))).any():
            m = m[:, columns]
        check_counts(m.data, where)
    else:
        m = np.asarray(matrix)[:, columns]
        check_counts(m, where)
        m = sp.csr_array(m.astype(np.float32, copy=False))  # exact, and scipy knows no half precision
    if binary:
        m = sp.csr_array(m, dtype=np.float32, copy=True)  # m may still be the user's own matrix
        m.sum_duplicates()
        m.data[:] = m.data > 0
    return m


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


def refuse_empty_cells(depths: np.ndarray, names: Iterable[str]) -> None:
    """Raise if a cell has no counts."""
    empty = np.flatnonzero(depths == 0)
    if empty.size:
        some = _some(np.asarray(names, dtype=str)[empty])
        raise DataError(
            f"every cell must have counts in the modelled features; {empty.size} have none: {some}. "
            "Remove them, for example with scanpy.pp.filter_cells"
        )


# --- counts from a file, a chunk at a time ---------------------------------------------------------


class StreamedCounts:
    """The counts of an AnnData or a file, read some cells at a time.

    Of .h5ad, .h5mu and .zarr files little is in memory at once; other formats are read into it.

    Attributes
    ----------
    table : anndata.AnnData
        ``obs`` and ``var``, without counts.
    """

    def __init__(self, data: ad.AnnData | str | Path, layer: str | None) -> None:
        self._file: Any = None
        if isinstance(data, ad.AnnData):
            matrix = _stored(data, layer)
        else:
            data = formats.open_file(_path(data), backed=True, only_counts=True)
            matrix = _stored(data, layer)
            self._file = getattr(getattr(matrix, "group", matrix), "file", None)  # of HDF5
        self.table = table(data.obs, data.var)
        self._stored: Any = sp.csr_array(matrix) if sp.issparse(matrix) else matrix

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    @property
    def by_column(self) -> bool:
        """Whether the file holds the counts by feature, so that reading a cell reads them all."""
        return getattr(self._stored, "format", "") == "csc"

    def chunks(self) -> Iterator[Any]:
        """Yield the counts of consecutive cells (of consecutive features if `by_column`)."""
        n_cells, n_features = self.table.shape
        if self.by_column:
            size = max(1, CHUNK_VALUES // max(1, n_cells))
            for start in range(0, n_features, size):
                yield self._read(np.s_[:, start : start + size])
            return
        size = max(1, min(4096, CHUNK_VALUES // max(1, n_features)))
        for start in range(0, n_cells, size):
            yield self._read(np.s_[start : start + size])

    def _read(self, at: Any) -> Any:
        with from_disk():
            chunk = self._stored[at]
            return formats.checked(chunk, "the matrix") if sp.issparse(chunk) else chunk


def table(obs: pd.DataFrame, var: pd.DataFrame) -> ad.AnnData:
    """Return an AnnData without counts; names may repeat, as elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return ad.AnnData(obs=formats.plain(obs), var=formats.plain(var))


# --- words for messages ---------------------------------------------------------------------------


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
