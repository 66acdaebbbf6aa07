"""HDF5 files of strangers: .h5ad, the modalities of .h5mu, .loom.

HDF5 can point from one file into another: by external links, virtual data sets, external storage. A file that does is
refused before anything of it is read, as are links within it, by which it could be endless.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ...errors import DataError
from .limits import TEXT, refuse_too_large

MOST_OBJECTS = 100_000
DEEPEST = 64
BLOCK_BYTES = 2**28
ENTRY = 16  # bytes of an entry of any length, in the file
SMALL = 2**32  # bytes of an array up to which it may hold nothing
MOST_RATIO = 5_000  # of an array's bytes to those in the file; deflate's utmost is 1,032
BLOCK_VALUES = 2**24  # of a dense matrix that are read at once

Sizes = dict[str, int]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tell whatever goes wrong in reading a file as its `DataError`."""
    try:
        yield
    except DataError:
        raise
    except Exception as problem:  # whatever a damaged or hostile file provokes
        kind = "".join(path.suffixes[-2:]) if path.name.endswith(".zarr.zip") else path.suffix
        told = str(problem) or type(problem).__name__
        raise DataError(f"{path.name} cannot be read as {kind or 'a matrix folder'}: {told}") from problem


def open_hdf5(path: Path) -> tuple[h5py.File, Sizes]:
    """Open a file that points nowhere else, to be read.

    Returns
    -------
    tuple
        The file, and the bytes in memory of each array by name.

    Raises
    ------
    DataError
        If it is no HDF5 file, is cut off, or holds links.
    """
    with reading(path):
        whole = path.stat().st_size
        if not h5py.is_hdf5(path):
            raise DataError(
                f"{path.name} is no HDF5 file, as {path.suffix} files are: something else has this name, or its "
                "beginning is missing. Copy it again from where it came, or convert it"
            )
        try:
            file = h5py.File(path, "r")
        except OSError as problem:
            if "truncated" not in str(problem):
                raise
            raise DataError(
                f"{path.name} cannot be read: it is cut off after {whole:,} bytes. Copy it again from where it came"
            ) from problem
    try:
        with reading(path):
            return file, _sizes(file, path.name)
    except DataError:
        file.close()
        raise


def _sizes(file: h5py.File, name: str) -> Sizes:
    sizes: Sizes = {}
    seen = {h5py.h5o.get_info(file.id).addr}
    todo: list[tuple[h5py.Group, str, int]] = [(file, "", 0)]
    n = 0
    while todo:
        group, where, depth = todo.pop()
        for key in group:
            n += 1
            at = f"{where}/{key}"
            if n > MOST_OBJECTS or depth > DEEPEST:
                raise DataError(f"{name} holds too many objects, or too deep: more than {MOST_OBJECTS:,} or {DEEPEST}")
            if not isinstance(_link(group, key), h5py.HardLink):
                raise DataError(
                    f"{name} holds a link, {at!r}, and files with links are not read. Read it where you trust it, "
                    "and write it anew with anndata"
                )
            node = group[key]
            if isinstance(node, h5py.Group):
                address = h5py.h5o.get_info(node.id).addr
                if address in seen:
                    raise DataError(f"{name} holds one group at two places, {at!r} and another; write it anew")
                seen.add(address)
                todo.append((node, at, depth + 1))
            elif isinstance(node, h5py.Dataset):
                if node.is_virtual or node.external:
                    raise DataError(f"{name} keeps {at!r} in another file, and such files are not read; write it anew")
                sizes[at] = int(node.size or 0) * (TEXT if node.dtype.hasobject else node.dtype.itemsize) + _long(node)
                if sizes[at] > max(SMALL, MOST_RATIO * node.id.get_storage_size()):
                    raise DataError(
                        f"{name} holds {at!r}, which would be {sizes[at] / 1e9:,.0f} GB and takes up next to nothing "
                        "in the file; it is damaged or meant to do harm"
                    )
    return sizes


def _long(node: h5py.Dataset) -> int:
    """Bytes of texts of any length: many entries may stand for one long text, which is read for each of them."""
    n, (text, other) = int(node.size or 0), (h5py.check_string_dtype(node.dtype), h5py.check_vlen_dtype(node.dtype))
    if n * ENTRY > SMALL or not (other or (text and text.length is None)):
        return 0
    if node.chunks is None:
        if (offset := node.id.get_offset()) is None:  # nothing is written, or it lies in the header
            return 0
        with open(node.file.filename, "rb") as f:
            f.seek(offset)
            blocks = [f.read(n * ENTRY)]
    else:
        found: list[tuple[int, ...]] = []
        node.id.chunk_iter(lambda chunk: found.append(chunk.chunk_offset))
        blocks = []
        for at_chunk in found:
            block = _unfiltered(node, *node.id.read_direct_chunk(at_chunk))
            if block is None:
                return _long_by_reading(node) if text else 0
            blocks.append(block)
    # An entry begins with the number of what it stands for, and goes on with where that is.
    lengths = (np.frombuffer(b[: len(b) // ENTRY * ENTRY], "<u4")[:: ENTRY // 4].sum(dtype=np.int64) for b in blocks)
    return int(sum(lengths)) * (1 if text else other.itemsize)


def _long_by_reading(node: h5py.Dataset) -> int:
    """As `_long`, reading so few texts at once that they fit even if each were as long as the file."""
    step = max(1, min(1024, BLOCK_BYTES // os.path.getsize(node.file.filename)))
    if node.ndim != 1 or len(node) // step > MOST_OBJECTS:
        return 0
    return sum(len(t) for start in range(0, len(node), step) for t in node[start : start + step])


def _unfiltered(node: h5py.Dataset, mask: int, data: bytes) -> bytes | None:
    """Undo what a chunk was compressed by; None if that is not gzip."""
    size = int(np.prod(node.chunks)) * ENTRY
    creation = node.id.get_create_plist()
    applied = [i for i in range(creation.get_nfilters()) if not mask >> i & 1]  # HDF5 leaves out what does not suit
    for name in (creation.get_filter(i)[0] for i in reversed(applied)):
        if name == h5py.h5z.FILTER_DEFLATE:
            data = zlib.decompressobj().decompress(data, size)
        elif name != h5py.h5z.FILTER_FLETCHER32:
            return None
    return data


def _link(group: h5py.Group, key: str) -> Any:
    try:
        return group.get(key, getlink=True)
    except TypeError:  # of a kind that h5py does not know
        return None


def format_of_hdf5(file: h5py.File) -> str | None:
    """Tell a file's format by what it holds; None: another one."""
    if isinstance(file.get("mod"), h5py.Group):
        return "h5mu"
    if isinstance(file.get("matrix"), h5py.Dataset) and "row_attrs" in file and "col_attrs" in file:
        return "loom"
    if isinstance(file.get("matrix"), h5py.Group) and "features" in file["matrix"]:
        return "10x h5"
    if "obs" in file and "var" in file:
        return "h5ad"
    return "10x h5, version 2" if genomes(file) else None


def genomes(file: h5py.File) -> list[str]:
    """Name the groups that Cell Ranger 2 wrote, one for each genome."""
    wanted = ("barcodes", "genes", "data", "indices", "indptr", "shape")
    return [key for key, node in file.items() if isinstance(node, h5py.Group) and all(w in node for w in wanted)]


def texts(node: h5py.Dataset) -> np.ndarray:
    """Read texts of any kind that HDF5 has; of numbers, what they print as."""
    values = np.asarray(node[()])
    if values.dtype.kind not in "SO":
        return values.astype(str).astype(object)
    return np.array([v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values.ravel()], object)


# --- loom -----------------------------------------------------------------------------------------


def loom_shape(file: h5py.File) -> tuple[int, int]:
    """Cells and features: loom holds them the other way round."""
    n_features, n_cells = file["matrix"].shape
    return n_cells, n_features


def read_loom(file: h5py.File, sizes: Sizes) -> Any:
    """Read a .loom file, counts in the file's own type; matrices of cells or features go to obsm and varm.

    loompy, which anndata would ask to, is not needed, and would round large counts to float32.
    """
    import anndata as ad

    name, n_features = Path(file.filename).name, file["matrix"].shape[0]
    refuse_too_large(name, sum(v for k, v in sizes.items() if "_attrs/" in k) + sizes["/matrix"] // max(1, n_features))
    obs, obsm = _attributes(file["col_attrs"], ("CellID", "obs_names", "Barcode", "barcode", "cell_id"))
    var, varm = _attributes(file["row_attrs"], ("Gene", "var_names", "gene_names", "Accession"))
    layers = {k: _transposed(v) for k, v in file.get("layers", {}).items()}
    return ad.AnnData(_transposed(file["matrix"]), obs=obs, var=var, obsm=obsm, varm=varm, layers=layers)


def _attributes(group: h5py.Group, names: tuple[str, ...]) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    columns, matrices = {}, {}
    for key, node in group.items():
        values = texts(node).reshape(node.shape) if node.dtype.kind in "SO" else node[()]
        if values.ndim == 2 and values.shape[1] != 1:
            matrices[key] = values
        else:
            columns[key] = values.reshape(-1)
    table = pd.DataFrame(columns)
    index = next((n for n in names if n in table), None)
    if index is None and len(table) == 0 and matrices:
        table = pd.DataFrame(index=range(len(next(iter(matrices.values())))))
    table.index = pd.Index(table.pop(index) if index else np.arange(len(table))).astype(str)
    table.index.name = None
    return table, matrices


def _transposed(node: h5py.Dataset) -> sp.csr_matrix:
    """Read features x cells as cells x features, some features at a time."""
    size = max(1, BLOCK_VALUES // max(1, node.shape[1]))
    blocks: list[sp.csr_matrix] = []
    for start in range(0, node.shape[0], size):
        blocks.append(sp.csr_matrix(node[start : start + size]))
        held = sum(b.data.nbytes + b.indices.nbytes for b in blocks)
        refuse_too_large(Path(node.file.filename).name, 2 * held)  # beside the blocks, what they are put together to
    return sp.csr_matrix(sp.vstack(blocks, format="csr").T) if blocks else sp.csr_matrix(node.shape[::-1], node.dtype)
