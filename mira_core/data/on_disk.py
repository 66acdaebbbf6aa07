"""A data set on the disk, in the form that training reads: a minibatch at a time.

=================  ==========================================================================================
``dataset.json``   format, sizes, and which features and columns were asked for; written last
``starts.i64``     where each cell's non-zeros begin, and where the last one's end; N + 1
``indices.i32``    feature of each non-zero
``values.f32``     count of each non-zero
``cells.h5ad``     ``obs``, and ``var`` of the modelled features, of which the encoder sees ``var['endogenous']``
=================  ==========================================================================================
"""

from __future__ import annotations

import copy
import operator
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..errors import DataError
from ..files import move_into_place, read_json, write_json
from . import anndata_io
from .anndata_io import Selection, StreamedCounts
from .counts import Cells, CountMatrix
from .covariates import Coding, GetColumn, learn_coding
from .file_array import FileArray, StoredRows
from .formats import elements, hdf5

FORMAT = 1
MANIFEST = "dataset.json"
# The options that decide what is written.
KEYS = ("feature_type", "highly_variable_key", "endogenous_key", "counts_layer")
FILES = {"starts.i64": np.int64, "indices.i32": np.int32, "values.f32": np.float32}


class OnDiskDataset:
    """Cells of a folder that `write` wrote, or some of them.

    Parameters
    ----------
    path
        The folder.
    rows
        Which cells, by number; None: all.

    Raises
    ------
    DataError
        If the folder is not such a data set, is not whole, or is of a newer format.
    """

    def __init__(self, path: str | Path, rows: np.ndarray | None = None) -> None:
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self.rows = rows

    def __len__(self) -> int:
        return self.manifest["n_cells"] if self.rows is None else len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and modelled features."""
        return len(self), self.manifest["n_features"]

    def take(self, rows: np.ndarray) -> OnDiskDataset:
        """Return some of these cells, as numpy would index them; nothing is copied."""
        some = copy.copy(self)
        some.rows = np.arange(len(self))[rows] if self.rows is None else self.rows[rows]
        return some

    def table(self) -> ad.AnnData:
        """Return ``obs`` and ``var`` without counts."""
        table = anndata_io.open_data(self.path / "cells.h5ad")
        return table if self.rows is None else table[self.rows].copy()

    def column(self, key: str) -> pd.Series:
        """Read one column of ``obs``."""
        with self._tables() as f:
            known = list(f["obs"].attrs["column-order"])
            if key not in known:
                return anndata_io.obs_column(pd.DataFrame(columns=known))(key)  # the same message as for an AnnData
            values = pd.Series(ad.io.read_elem(f["obs"][key]))
            if len(values) != self.manifest["n_cells"]:
                raise DataError(f"{self.path} is damaged: obs[{key!r}] has {len(values):,} values")
        return values if self.rows is None else values.iloc[self.rows]

    @contextmanager
    def _tables(self) -> Iterator[h5py.File]:
        path = self.path / "cells.h5ad"
        with hdf5.reading(path), h5py.File(path) as f:
            yield f

    def counts(self) -> CountMatrix:
        """Return the counts, which stay on the disk until they are asked for."""
        starts = np.fromfile(self.path / "starts.i64", np.int64)
        if starts[0] != 0 or starts[-1] != self.manifest["n_counts"] or (np.diff(starts) < 0).any():
            raise DataError(f"{self.path} is damaged: starts.i64 does not divide the counts. Copy or write it anew")
        indices, values = (FileArray(self.path / name, np.dtype(FILES[name])) for name in ("indices.i32", "values.f32"))
        return CountMatrix(StoredRows(starts, indices, values, self.manifest["n_features"]), self.rows)

    def selection(self) -> Selection:
        """Return the features it was written with."""
        with self._tables() as f:
            var = ad.io.read_elem(f["var"])
            names = np.asarray(var.index, dtype=str)
            return Selection(np.arange(len(names)), names, var["endogenous"].to_numpy(dtype=bool))

    def training_cells(self, options: Mapping[str, Any]) -> Cells:
        """Return the cells for a model that is to be fitted to them.

        Raises
        ------
        DataError
            If the data set was written with other features or counts than the options ask for.
        """
        for key, wanted in _asked(options).items():
            if wanted != (written := self.manifest["options"][key]):
                raise DataError(
                    f"{self.path} was written with {key}={written!r}, and the model has {key}={wanted!r}. "
                    "Write it anew by this model's write_ondisk_dataset, or set the model's option to that"
                )
        return self._cells(self.selection(), learn_coding(self.column, options))

    def cells_of_model(
        self, options: Mapping[str, Any], features: np.ndarray, endogenous: np.ndarray, coding: Coding
    ) -> Cells:
        """Return the cells for a fitted model.

        Raises
        ------
        DataError
            If the data set was written with other features than the model's.
        """
        written = self.selection().features
        if len(written) != len(features) or (written != features).any():
            raise DataError(
                f"{self.path} was written with other features ({len(written):,}), or in another order, than the "
                f"model's ({len(features):,}). Write it by the fitted model's write_ondisk_dataset"
            )
        if self.manifest["options"]["feature_type"] != options["feature_type"]:
            raise DataError(f"{self.path} was written for {self.manifest['options']['feature_type']}")
        return self._cells(Selection(np.arange(len(features)), features, endogenous), coding)

    def _cells(self, chosen: Selection, coding: Coding) -> Cells:
        return anndata_io.make_cells(self.counts(), chosen, coding, self.column)


def _asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that decide what is written, the one with two names under the newer."""
    asked = {key: options[key] for key in KEYS}
    asked["highly_variable_key"] = asked["highly_variable_key"] or options["exogenous_key"]
    return asked


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise DataError(f"{path} is a file" if path.exists() else f"there is no folder {path}")
    try:
        manifest = read_json(path / MANIFEST)
        found = manifest["format"]
    except FileNotFoundError:
        ours = any((path / name).exists() for name in FILES)
        raise DataError(
            f"{path} was not written to its end: it has no {MANIFEST}. Delete it and write it anew"
            if ours
            else f"{path} is not a data set of write_ondisk_dataset: it has no {MANIFEST}"
        ) from None
    except (ValueError, KeyError, TypeError, IsADirectoryError) as problem:
        raise DataError(f"{path / MANIFEST} is damaged: {problem!r}. Write the data set anew") from problem
    if not isinstance(found, int) or found > FORMAT:
        raise DataError(f"{path} has format {found}; this version reads up to {FORMAT}. Update mira")
    try:
        n_cells, n_features, nnz = sizes = [operator.index(manifest[k]) for k in ("n_cells", "n_features", "n_counts")]
        if min(sizes) < 0:
            raise ValueError(f"sizes must not be negative; got {sizes}")
        _ = [manifest["options"][key] for key in KEYS]
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(f"{path / MANIFEST} is damaged: {problem!r}. Write the data set anew") from problem
    expected = {"starts.i64": 8 * (n_cells + 1), "indices.i32": 4 * nnz, "values.f32": 4 * nnz}
    for name, size in expected.items():
        there = (path / name).stat().st_size if (path / name).is_file() else 0
        if there != size:
            raise DataError(
                f"{path} is not whole: {name} should have {size:,} bytes and has {there:,}. Copy or write it anew"
            )
    try:
        file, _ = hdf5.open_hdf5(path / "cells.h5ad")
        with file, hdf5.reading(path / "cells.h5ad"):
            if (shape := elements.shape_of(file)) != (n_cells, n_features):
                raise DataError(f"cells.h5ad is of {shape[0]:,} cells and {shape[1]:,} features")
    except DataError as problem:  # missing, cut off, of something else
        raise DataError(f"{path} is not whole: {problem}. Copy or write it anew") from problem
    return manifest


def write(
    data: ad.AnnData | str | Path,
    path: str | Path,
    options: Mapping[str, Any],
    choose: Callable[[ad.AnnData], Selection],
    coding: Coding | None = None,
) -> None:
    """Write a data set in one pass over its cells, holding a few thousand of them at a time.

    Counts that a file holds by feature (CSC) take two passes over the features. The folder is written beside and
    renamed; a data set of this name is replaced, anything else is left and refused.

    Parameters
    ----------
    data
        AnnData, in memory or backed, or a path as `open_data` takes it. What is neither .h5ad, .h5mu nor .zarr is
        read into memory first.
    path
        The folder to write.
    options
        Of the model; ``counts_layer``, ``feature_type`` and the covariates are read.
    choose
        Chooses the features, given ``obs`` and ``var``.
    coding
        Of the fitted model that is to read it; None: learned from these cells when a model is trained.
    """
    path = Path(path).resolve()  # what a link stands for is replaced, not the link
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        try:
            _read_manifest(path)
        except DataError as problem:
            raise DataError(f"{path} exists and is no whole data set that could be replaced: {problem}") from None
    source = StreamedCounts(data, options["counts_layer"])
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        table = source.table
        if not table.n_obs:
            raise DataError("the data has no cells")
        chosen = choose(table)
        _check_coding(table, options, coding)
        beside.mkdir(parents=True)
        _write_table(table, chosen, beside / "cells.h5ad")
        with open(beside / "indices.i32", "w+b") as indices, open(beside / "values.f32", "w+b") as values:
            scatter = _write_by_column if source.by_column else _write_by_row
            starts = scatter(source, chosen, options, indices, values)
        starts.astype(np.int64).tofile(beside / "starts.i64")
        anndata_io.refuse_empty_cells(np.diff(starts), table.obs_names)
        manifest = {
            "format": FORMAT,
            "n_cells": table.n_obs,
            "n_features": len(chosen.features),
            "n_counts": int(starts[-1]),
            "options": _asked(options),
        }
        write_json(beside / MANIFEST, manifest)
        if path.exists():
            old = path.with_name(f"{beside.name}.old")
            path.rename(old)
            move_into_place(beside, path)
            shutil.rmtree(old)
        else:
            move_into_place(beside, path)
    finally:
        source.close()
        shutil.rmtree(beside, ignore_errors=True)


def _check_coding(table: ad.AnnData, options: Mapping[str, Any], coding: Coding | None) -> None:
    """Raise now, and not after an hour of writing, if a column is missing or cannot be coded."""
    column: GetColumn = anndata_io.obs_column(table.obs)
    coding = coding or learn_coding(column, options)
    coding.covariates(column)
    coding.extra_features(column)


def _write_table(table: ad.AnnData, chosen: Selection, path: Path) -> None:
    """Write what is no count, before the counts: it too may be refused."""
    var = table.var.iloc[chosen.columns].copy()
    var["endogenous"] = chosen.endogenous
    try:
        anndata_io.table(table.obs, var).write_h5ad(path)
    except OSError:  # the disk is full
        raise
    except Exception as problem:  # a column of mixed types, or of names that a file cannot hold
        raise DataError(f"obs or var cannot be written as .h5ad: {problem}") from problem


def _clean(chunk: Any, columns: np.ndarray, options: Mapping[str, Any]) -> sp.csr_array:
    m = anndata_io.clean(chunk, columns, options["counts_layer"], anndata_io.is_binary(options))
    m = sp.csr_array(m, dtype=np.float32)
    m.sum_duplicates()
    m.eliminate_zeros()
    return m


def _write_by_row(
    source: StreamedCounts, chosen: Selection, options: Mapping[str, Any], indices: BinaryIO, values: BinaryIO
) -> np.ndarray:
    lengths = []
    for chunk in source.chunks():
        m = _clean(chunk, chosen.columns, options)
        m.indices.astype(np.int32).tofile(indices)
        m.data.tofile(values)
        lengths.append(np.diff(m.indptr))
    return np.append(0, np.cumsum(np.concatenate(lengths), dtype=np.int64))


def _write_by_column(
    source: StreamedCounts, chosen: Selection, options: Mapping[str, Any], indices: BinaryIO, values: BinaryIO
) -> np.ndarray:
    # Features come in the data's order and must go out in the model's.
    position = np.full(source.table.n_vars, -1)
    position[chosen.columns] = np.arange(len(chosen.columns))
    if (np.diff(chosen.columns) < 0).any():
        raise DataError(
            "the file holds counts by feature (CSC), in another order than the model's features; write it as CSR first"
        )

    def blocks() -> Any:
        seen = 0
        for chunk in source.chunks():
            at = position[seen : seen + chunk.shape[1]]
            seen += chunk.shape[1]
            if (at >= 0).any():
                yield at[at >= 0], _clean(chunk, np.flatnonzero(at >= 0), options)

    lengths = sum((np.diff(m.indptr) for _, m in blocks()), np.zeros(source.table.n_obs, np.int64))
    starts = np.append(0, np.cumsum(lengths, dtype=np.int64))
    if starts[-1] == 0:
        return starts
    for f in (indices, values):
        f.truncate(4 * int(starts[-1]))
    out_indices = np.memmap(indices, np.int32, mode="r+")
    out_values = np.memmap(values, np.float32, mode="r+")
    free = starts[:-1].copy()
    for features, m in blocks():
        n = np.diff(m.indptr)
        at = np.arange(m.nnz) + np.repeat(free - m.indptr[:-1], n)
        out_indices[at], out_values[at] = features[m.indices], m.data
        free += n
    out_indices.flush()
    out_values.flush()
    return starts
