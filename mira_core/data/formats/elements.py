"""AnnData from a group of HDF5 or zarr, with counts left on the disk if wanted."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from ...errors import DataError
from .hdf5 import Sizes
from .limits import check_pointers, checked, refuse_too_large

logger = logging.getLogger(__name__)

TABLES = ("obs", "var")
SCALARS = (str, bytes, int, float, bool, np.generic, type(None), type(pd.NA))
RESULTS = ("obsm", "varm", "obsp", "varp", "uns")


def check_room(name: str, sizes: Sizes, within: str = "", *, backed: bool = False) -> None:
    """Raise unless what is read of an AnnData fits into memory."""
    counts = ("X", "layers", "raw", "raw.X")
    inside = {k.removeprefix(within + "/"): v for k, v in sizes.items() if k.startswith(within + "/")}
    refuse_too_large(name, sum(v for k, v in inside.items() if not backed or k.split("/")[0] not in counts))


def read_group(group: Any, sizes: Sizes, within: str = "", *, backed: bool, only_counts: bool = False) -> ad.AnnData:
    """Read an AnnData from a group.

    Parameters
    ----------
    group
        Of HDF5 or zarr.
    sizes, within
        The arrays of the file that can be read, and where the group is in it.
    backed
        Leave X, layers and raw on the disk; anndata itself would leave X alone.
    only_counts
        Read nothing but obs, var, X and layers.
    """
    read = _left if backed else ad.io.read_elem
    parts: dict[str, Any] = {k: ad.io.read_elem(group[k]) for k in TABLES}
    for k in TABLES:
        if not isinstance(parts[k], pd.DataFrame):
            raise DataError(f"its {k} is not a table; write it anew with a current anndata")
        parts[k] = plain(parts[k])
    if "X" in group:
        parts["X"] = read(group["X"])
    if "layers" in group:
        parts["layers"] = {k: read(group["layers"][k]) for k in _members(sizes, f"{within}/layers/")}
    if not only_counts:
        parts |= {k: _readable(group[k], k, _members(sizes, f"{within}/{k}/")) for k in RESULTS if k in group}
        raw = group.get("raw")
        if hasattr(raw, "keys") and "X" in raw:  # some write that there is none
            parts["raw"] = {"X": read(raw["X"]), "var": plain(ad.io.read_elem(raw["var"]))}
            if "varm" in raw:
                parts["raw"]["varm"] = ad.io.read_elem(raw["varm"])
    return ad.AnnData(**parts)


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """Return it with its texts as objects, the kind that every anndata writes; of new files they are pandas's own."""
    table = table.copy(deep=False)
    for name, column in table.items():
        if isinstance(column.dtype, pd.StringDtype):
            table[name] = column.astype(object).where(column.notna(), np.nan)
        elif isinstance(column.dtype, pd.CategoricalDtype) and isinstance(column.cat.categories.dtype, pd.StringDtype):
            table[name] = column.cat.rename_categories(list(column.cat.categories))
    return table.set_axis(table.index.astype(object)) if isinstance(table.index.dtype, pd.StringDtype) else table


def _members(sizes: Sizes, of: str) -> list[str]:
    """Name what is in a group, asking the walk through the file: zarr would open it all."""
    return sorted({k.removeprefix(of).split("/")[0] for k in sizes if k.startswith(of)})


def _readable(group: Any, name: str, keys: list[str]) -> dict[str, Any]:
    """Read what this version of anndata can read of results, which no model needs."""
    out = {}
    for key in keys:
        try:
            out[key] = ad.io.read_elem(group[key])
        except Exception as problem:
            logger.warning("%s[%r] cannot be read and is left out: %s", name, key, problem)
    return out


def _left(node: Any) -> Any:
    """Return a matrix that reads what is asked of it from the disk."""
    if node.attrs.get("encoding-type") == "null":
        return None
    if "h5sparse_format" in node.attrs or node.attrs.get("encoding-type") in ("csr_matrix", "csc_matrix"):
        return ad.io.sparse_dataset(node)
    return node if hasattr(node, "dtype") else ad.io.read_elem(node)


def check_tables(adata: ad.AnnData) -> ad.AnnData:
    """Return it after a look at its columns: a file may hold lists, references and nothing at all in their place."""
    for name, table in (("obs", adata.obs), ("var", adata.var)):
        for key, column in table.items():
            values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
            told = values.dtype == object and pd.api.types.infer_dtype(values) == "mixed"
            if values.dtype.kind in "Vc" or (told and not all(isinstance(v, SCALARS) for v in values)):
                raise DataError(
                    f"{name}[{key!r}] must hold numbers or texts, one for each row; take it out of the file"
                )
    return adata


def check_matrices(adata: ad.AnnData) -> ad.AnnData:
    """Return it after a look at the sizes of its matrices, and at the indices of the sparse ones."""
    matrices = {f"layer {k!r}": (v, adata.shape) for k, v in adata.layers.items()}
    with suppress(KeyError):  # how one that is read from the disk says that it has none
        matrices["X"] = adata.X, adata.shape
    if adata.raw is not None:
        matrices["raw"] = adata.raw.X, adata.raw.shape
    for where, (matrix, shape) in matrices.items():
        if matrix is not None and tuple(matrix.shape) != shape:
            found = " x ".join(map(str, matrix.shape))
            raise DataError(f"{where} is of {found} values, and there are names of {shape[0]:,} x {shape[1]:,}")
        _check_indices(where, matrix)
    for name in ("obsm", "varm", "obsp", "varp"):
        for key, matrix in getattr(adata, name).items():
            _check_indices(f"{name}[{key!r}]", matrix)
    return adata


def _check_indices(where: str, matrix: Any) -> None:
    if (form := getattr(matrix, "format", "")) not in ("csr", "csc"):
        return
    if hasattr(matrix, "check_format"):
        checked(matrix, where)
    else:  # on the disk, where its indices are looked at as they are read
        stored = min(matrix.group[k].shape[0] for k in ("data", "indices"))
        check_pointers(matrix.group["indptr"][:], matrix.shape[0 if form == "csr" else 1], stored, where)


# --- MuData ---------------------------------------------------------------------------------------


def modalities(file: Any) -> dict[str, tuple[int, int]]:
    """Return the sizes of the modalities by name, in the file's order."""
    mods = file["mod"]
    order = [str(m) for m in mods.attrs.get("mod-order", ()) if str(m) in mods]
    names = [*order, *(m for m in mods if m not in order)]
    return {m: shape_of(mods[m]) for m in names}


def read_modality(file: Any, sizes: Sizes, name: str, *, backed: bool, only_counts: bool = False) -> ad.AnnData:
    """Read a modality, with those columns of all cells that no modality has for itself."""
    adata = read_group(file["mod"][name], sizes, f"/mod/{name}", backed=backed, only_counts=only_counts)
    if "obs" in file:
        shared = ad.io.read_elem(file["obs"])
        own = [c for c in shared.columns if c not in adata.obs and ":" not in c]
        if own and shared.index.is_unique and adata.obs_names.isin(shared.index).all():
            adata.obs = adata.obs.join(shared[own])
    return adata


def shape_of(group: Any) -> tuple[int, int]:
    """Return the numbers of cells and features of an AnnData's group."""
    n_cells, n_features = (_length(group[k]) for k in TABLES)
    return n_cells, n_features


def _length(table: Any) -> int:
    if hasattr(table, "shape"):
        return int(table.shape[0])  # of an anndata before 0.7
    index = table.attrs.get("_index", "_index")
    column = table[index.decode() if isinstance(index, bytes) else index]
    while not hasattr(column, "shape"):
        column = column["codes" if "codes" in column else "values"]
    return int(column.shape[0])


def is_old(file: h5py.File) -> bool:
    """Whether the file is of an anndata before 0.7, of which only anndata itself knows how to read it."""
    return isinstance(file["obs"], h5py.Dataset) or isinstance(file["var"], h5py.Dataset)
