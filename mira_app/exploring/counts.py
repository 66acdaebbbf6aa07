"""Raw counts by feature: read once, cell by cell as they lie on the disk, and kept so that a feature is read at once.

One column of a matrix that is stored by rows cannot be had without reading all of it. So the first feature that
somebody asks for takes a pass over the counts, and every further one some milliseconds.

Shapes: N cells, G features of the data.
"""

from __future__ import annotations

import abc
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from mira_core.data.anndata_io import StreamedCounts
from mira_core.data.file_array import FileArray
from mira_core.data.on_disk import OnDiskDataset
from mira_core.data.recipe import open_cells
from mira_core.data.sources import is_ondisk
from mira_core.errors import DataError

PIECE = 2**24  # non-zeros that are turned at once
PER = 10_000  # counts that a cell is scaled to before logarithms are taken
Progress = Callable[[float], None]


class FeatureCounts:
    """Counts of all cells, by feature.

    Attributes
    ----------
    n_cells
        N.
    features
        Names of the features, G.
    depths
        Counts of each cell, N.
    """

    def __init__(
        self, features: pd.Index, depths: np.ndarray, pieces: np.ndarray, starts: list[np.ndarray], rows: Any,
        values: Any,
    ) -> None:  # fmt: skip
        self.features, self.depths, self.n_cells = features, depths, len(depths)
        self._pieces, self._starts, self._rows, self._values = pieces, starts, rows, values

    def column(self, feature: str) -> np.ndarray:
        """Return the counts of a feature in all cells, N.

        Raises
        ------
        DataError
            If the data have no such feature.
        """
        j = self.features.get_indexer_for([feature])[0]
        if j < 0:
            raise DataError(f"the data of this run have no feature {feature!r}; was the file changed?")
        out = np.zeros(self.n_cells, np.float32)
        for piece, (row, first, after, offset) in enumerate(self._pieces):
            if first <= j < after:
                start, end = self._starts[piece][j - first : j - first + 2] + offset
                where = np.array([start]), np.array([end - start])
                np.add.at(out, self._rows.gather(*where) + row, self._values.gather(*where))
        return out

    def log_normalised(self, feature: str) -> np.ndarray:
        """Return log(1 + counts per 10,000) of a feature, N."""
        return np.log1p(self.column(feature) * (PER / np.maximum(self.depths, 1)).astype(np.float32))


class _Stretches:
    """An array of which stretches are taken, as of a `FileArray`."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return np.concatenate([self.values[s : s + n] for s, n in zip(starts, lengths, strict=True)])


def of_data(adata: ad.AnnData, layer: str | None, progress: Progress) -> FeatureCounts:
    """Take the counts of an AnnData; they are held a second time, by feature.

    Raises
    ------
    DataError
        If there are none.
    """
    return _gather(StreamedCounts(adata, layer), None, progress)


def of_job(spec: Mapping[str, Any], folder: Path, progress: Progress) -> FeatureCounts:
    """Take the counts of a run from its data, as its recipe leaves them; kept in a folder, and read from there later.

    Raises
    ------
    DataError
        If the data are no longer there.
    """
    if not (folder / "told.json").is_file():
        data, layer = spec["data"], spec["model"].get("counts_layer")
        if spec.get("recipe") is None and is_ondisk(data):
            source: Any = _OnDisk(OnDiskDataset(data))
        elif spec.get("recipe") is None and isinstance(data, str) and not data.startswith("demo:"):
            source = StreamedCounts(data, layer)
        else:
            source = StreamedCounts(open_cells(spec), layer)  # type: ignore[arg-type]
        try:
            _gather(source, folder, progress)
        finally:
            source.close()
    return _read(folder)


class _OnDisk:
    """What `write_ondisk_dataset` wrote, in the form of `StreamedCounts`."""

    by_column = False

    def __init__(self, dataset: OnDiskDataset) -> None:
        self.table = dataset.table()
        self._counts = dataset.counts()

    def chunks(self) -> Iterable[Any]:
        return self._counts.csr_chunks()

    def close(self) -> None:
        pass


def _gather(source: Any, folder: Path | None, progress: Progress) -> FeatureCounts:
    n, g = source.table.shape
    features = pd.Index(source.table.var_names.astype(str))
    writer = _InMemory() if folder is None else _InFiles(folder)
    depths = np.zeros(n)
    done, waiting, size, first = 0, [], 0, 0

    def turn() -> None:
        nonlocal waiting, size, first
        if waiting:
            turned = sp.csc_array(sp.vstack(waiting))
            writer.add(turned, first, 0)
            depths[first : first + turned.shape[0]] = turned.sum(1)
            first += turned.shape[0]
        waiting, size = [], 0

    for chunk in source.chunks():
        if source.by_column:
            turned = sp.csc_array(chunk)
            writer.add(turned, 0, done)
            depths += turned.sum(1)
            done += turned.shape[1]
            progress(done / max(g, 1))
            continue
        part = sp.csr_array(chunk)
        waiting.append(part)
        size += part.nnz
        done += part.shape[0]
        if size >= PIECE:
            turn()
        progress(done / max(n, 1))
    turn()
    return writer.end(features, depths)


class _Writer(abc.ABC):
    """Puts pieces, by feature, one after the other."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, int, int, int]] = []
        self.starts: list[np.ndarray] = []
        self.offset = 0

    def add(self, piece: sp.csc_array, row: int, column: int) -> None:
        self.pieces.append((row, column, column + piece.shape[1], self.offset))
        self.starts.append(piece.indptr.astype(np.int64))
        self.offset += piece.nnz
        self.put(piece.indices.astype(np.int32), piece.data.astype(np.float32))

    @abc.abstractmethod
    def put(self, rows: np.ndarray, values: np.ndarray) -> None: ...

    @abc.abstractmethod
    def end(self, features: pd.Index, depths: np.ndarray) -> FeatureCounts: ...

    @property
    def table(self) -> np.ndarray:
        return np.array(self.pieces, np.int64).reshape(-1, 4)


class _InMemory(_Writer):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.values = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        self.rows.append(rows)
        self.values.append(values)

    def end(self, features: pd.Index, depths: np.ndarray) -> FeatureCounts:
        rows, values = (_Stretches(np.concatenate(a)) for a in (self.rows, self.values))
        return FeatureCounts(features, depths, self.table, self.starts, rows, values)


class _InFiles(_Writer):
    """They are in `folder` once all are there."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.beside = folder, folder.with_name(folder.name + ".part")
        shutil.rmtree(self.beside, ignore_errors=True)
        self.beside.mkdir(parents=True)
        self.rows = open(self.beside / "rows.i32", "wb")  # noqa: SIM115 - closed in `end`
        self.values = open(self.beside / "values.f32", "wb")  # noqa: SIM115

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        rows.tofile(self.rows)
        values.tofile(self.values)

    def end(self, features: pd.Index, depths: np.ndarray) -> FeatureCounts:
        self.rows.close()
        self.values.close()
        np.savez(
            self.beside / "index.npz", pieces=self.table, depths=depths,
            starts=np.concatenate(self.starts) if self.starts else np.zeros(0, np.int64),
            features=features.to_numpy(str),
        )  # fmt: skip
        (self.beside / "told.json").write_text(json.dumps({"cells": len(depths), "features": len(features)}))
        self.beside.replace(self.folder)
        return _read(self.folder)


def _read(folder: Path) -> FeatureCounts:
    with np.load(folder / "index.npz", allow_pickle=False) as index:
        pieces, starts, depths, features = (index[k] for k in ("pieces", "starts", "depths", "features"))
    lengths = np.cumsum(pieces[:, 2] - pieces[:, 1] + 1)
    rows, values = (
        FileArray(folder / "rows.i32", np.dtype(np.int32)),
        FileArray(folder / "values.f32", np.dtype(np.float32)),
    )
    return FeatureCounts(pd.Index(features), depths, pieces, np.split(starts, lengths[:-1]), rows, values)
