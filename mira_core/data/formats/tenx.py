"""What Cell Ranger writes, and others in its forms: .h5 files and matrix folders.

scanpy's readers are not used: they round counts above 2^24, take a gene named NA for none, know no folder of which
only some files are compressed, nor peaks, and take seconds to import.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from pathlib import Path
from typing import Any, BinaryIO

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ...errors import DataError
from .hdf5 import Sizes, texts
from .limits import checked, refuse_too_large

MATRIX = re.compile(r"(?!\.)(.*)matrix\.mtx(\.gz)?")  # some put the sample's name before it
LINE = 400  # bytes, at most, of a line of names
ENTRY = 100  # bytes, at most, of a line of a matrix


# --- .h5 ------------------------------------------------------------------------------------------


Types = dict[str | None, int]


def types_h5(file: h5py.File, sizes: Sizes) -> tuple[int, Types]:
    """Return the number of cells, and of features by their type; None: they have none."""
    group = file["matrix"]
    _refuse_too_large(file, sizes, "/matrix/features")
    n = len(group["features/id"])
    return len(group["barcodes"]), _sizes_of(_types(group["features"]), n)


def read_h5(file: h5py.File, sizes: Sizes, part: str | None) -> ad.AnnData:
    """Read cells x features of one type of features, counts in the file's own type."""
    group = file["matrix"]
    _refuse_too_large(file, sizes, "/matrix")
    features = group["features"]
    n = len(features["id"])
    var = pd.DataFrame({"gene_ids": texts(features["gene_id" if "gene_id" in features else "id"])})
    if "gene_id" in features:  # probes of genes
        var["probe_ids"] = texts(features["id"])
    if (types := _types(features)) is not None:
        var["feature_types"] = types
    for key in sorted(features.keys() - {"id", "gene_id", "name", "feature_type"}):
        node = features[key]
        if isinstance(node, h5py.Dataset) and node.shape == (n,):
            var[key] = node[()] if node.dtype.kind in "biuf" else texts(node)
    names = texts(features["name"]) if "name" in features else texts(features["id"])
    return _assembled(_compressed(group), texts(group["barcodes"]), names, var, part)


def read_h5_of_version_2(file: h5py.File, sizes: Sizes, genome: str) -> ad.AnnData:
    """Read cells x genes of one genome."""
    group = file[genome]
    _refuse_too_large(file, sizes, f"/{genome}")
    ids = texts(group["genes"])
    names = texts(group["gene_names"]) if "gene_names" in group else ids
    return _assembled(_compressed(group), texts(group["barcodes"]), names, pd.DataFrame({"gene_ids": ids}))


def _types(features: h5py.Group) -> np.ndarray | None:
    return texts(features["feature_type"]) if "feature_type" in features else None


def _refuse_too_large(file: h5py.File, sizes: Sizes, within: str) -> None:
    size = sum(v for k, v in sizes.items() if k.startswith(within + "/"))
    refuse_too_large(Path(file.filename).name, 2 * size)  # some is copied


def _compressed(group: h5py.Group) -> sp.csr_matrix:
    n_features, n_cells = (int(v) for v in group["shape"][()])
    arrays = tuple(group[k][()] for k in ("data", "indices", "indptr"))
    if arrays[0].dtype.kind not in "biuf":
        raise DataError(f"counts must be numbers; got {arrays[0].dtype}")
    # By column of features x cells is by row of cells x features.
    return sp.csr_matrix(arrays, shape=(n_cells, n_features))


# --- folders --------------------------------------------------------------------------------------


def find_matrix(folder: Path) -> dict[str, Path] | None:
    """Find ``matrix``, ``barcodes`` and ``features`` of a folder; None if it has no matrix.

    Raises
    ------
    DataError
        If names are missing, or it has several matrices.
    """
    found = {m[1]: path for path in sorted(folder.iterdir()) if (m := MATRIX.fullmatch(path.name)) and path.is_file()}
    if not found:
        return None
    if len(found) > 1:
        raise DataError(
            f"{folder.name} holds {len(found)} matrices, {', '.join(p.name for p in found.values())}; "
            "move each with its barcodes and features to a folder of its own"
        )
    ((prefix, matrix),) = found.items()
    out = {"matrix": matrix}
    for what, stems in {"barcodes": ["barcodes.tsv"], "features": ["features.tsv", "genes.tsv", "peaks.bed"]}.items():
        names = [prefix + stem + end for stem in stems for end in (".gz", "")]
        there = next((folder / n for n in names if (folder / n).is_file()), None)
        if there is None:
            raise DataError(
                f"{folder.name} has {matrix.name}, and must also have {' or '.join(prefix + s for s in stems)}"
            )
        out[what] = there
    return out


def types_folder(files: dict[str, Path]) -> tuple[int, Types]:
    """Return the number of cells, and of features by their type; None: they have none."""
    (rows, columns), _ = _header(files["matrix"])
    names, table = _features(files["features"], max(rows, columns))
    n_cells = columns if len(names) == rows else rows
    return n_cells, _sizes_of(table.get("feature_types"), len(names))


def read_folder(files: dict[str, Path], part: str | None) -> ad.AnnData:
    """Read cells x features of one type of features."""
    shape, (n, dense) = _header(files["matrix"])
    size = files["matrix"].stat().st_size * (1032 if files["matrix"].suffix == ".gz" else 1)  # deflate's utmost
    if not dense and 4 * n > size:
        raise DataError(f"{files['matrix'].name} should have {n:,} counts, and is too short for them; it is cut off")
    name = files["matrix"].parent.name
    refuse_too_large(name, 32 * n + 16 * sum(shape))
    names, var = _features(files["features"], max(shape))
    barcodes = _table(files["barcodes"], max(shape))[0].to_numpy(dtype=object)
    if shape not in ((len(names), len(barcodes)), (len(barcodes), len(names))):
        raise DataError(
            f"{name}: the matrix has {shape[0]:,} x {shape[1]:,} entries, and there are {len(names):,} features and "
            f"{len(barcodes):,} barcodes. The three files are not of one data set, or one is cut off"
        )
    from scipy.io import mmread

    with _opened(files["matrix"], (n + 1000) * ENTRY) as f:
        matrix = sp.coo_matrix(mmread(f))
    if matrix.dtype.kind == "i" and (matrix.nnz == 0 or abs(matrix.data).max() < 2**31):
        matrix = matrix.astype(np.int32)
    cells = sp.csr_matrix(matrix.T if shape == (len(names), len(barcodes)) else matrix)
    return _assembled(cells, barcodes, names, var, part)


def _header(path: Path) -> tuple[tuple[int, int], tuple[int, bool]]:
    from scipy.io import mminfo

    with _opened(path, 2**20) as f:
        rows, columns, n, layout, field, _ = mminfo(io.BytesIO(f.read(2**16)))
    if field == "complex":
        raise DataError(f"{path.name} holds complex numbers, and must hold counts")
    return (int(rows), int(columns)), (int(n), layout == "array")


def _features(path: Path, most: int) -> tuple[np.ndarray, pd.DataFrame]:
    table = _table(path, most)
    if ".bed" in path.name:
        if table.shape[1] < 3:
            raise DataError(f"{path.name} must have chromosome, start and end; it has {table.shape[1]} columns")
        names = (table[0] + ":" + table[1] + "-" + table[2]).to_numpy(dtype=object)
        return names, pd.DataFrame({"gene_ids": names, "feature_types": "Peaks"})
    ids = table[0].to_numpy(dtype=object)
    var = pd.DataFrame({"gene_ids": ids})
    if table.shape[1] > 2:
        var["feature_types"] = table[2].to_numpy(dtype=object)
    return (table[1].to_numpy(dtype=object) if table.shape[1] > 1 else ids), var


def _table(path: Path, most: int) -> pd.DataFrame:
    limit = (most + 1000) * LINE
    refuse_too_large(path.name, limit // 10)
    with _opened(path, limit) as f:
        return pd.read_csv(
            f, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE,
            encoding_errors="replace",
        )  # fmt: skip


def _opened(path: Path, limit: int) -> io.BufferedReader:
    file: Any = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")  # noqa: SIM115
    return io.BufferedReader(_Bounded(file, limit, path.name), 2**16)


class _Bounded(io.RawIOBase):
    """Reads so many bytes and no more: a few bytes of a .gz file can unpack to any number."""

    def __init__(self, file: BinaryIO, limit: int, name: str) -> None:
        self._file, self._left, self._name = file, limit, name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._name} is much longer than its matrix allows; it is damaged or meant to do harm")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


# --- both -----------------------------------------------------------------------------------------


def _sizes_of(types: Any, n_features: int) -> Types:
    if types is None:
        return {None: n_features}
    values, n = np.unique(np.asarray(types, dtype=str), return_counts=True)
    return dict(zip(values.tolist(), n.tolist(), strict=True))


def _assembled(
    counts: sp.csr_matrix, barcodes: np.ndarray, names: np.ndarray, var: pd.DataFrame, part: str | None = None
) -> ad.AnnData:
    if counts.shape != (len(barcodes), len(names)) or len(var) != len(names):
        raise DataError(
            f"the matrix has {counts.shape[0]:,} cells and {counts.shape[1]:,} features, and there are names of "
            f"{len(barcodes):,} and {len(names):,}"
        )
    counts = checked(counts, "the matrix")
    if part is not None:
        keep = (var["feature_types"] == part).to_numpy()
        counts, names, var = counts[:, keep], names[keep], var[keep]
    counts.sum_duplicates()
    names = np.where(names == "", var["gene_ids"], names)
    # Symbols repeat, ids do not; the ids stay in var.
    var.index = ad.utils.make_index_unique(pd.Index(names.astype(str)))
    return ad.AnnData(counts, obs=pd.DataFrame(index=pd.Index(barcodes.astype(str))), var=var)
