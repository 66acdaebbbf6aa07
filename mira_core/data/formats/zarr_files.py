"""AnnData and MuData in .zarr folders and zip files, which are read in place and never unpacked."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import DataError
from .hdf5 import MOST_OBJECTS, Sizes
from .limits import TEXT, available

NODES = ("zarr.json", ".zarray", ".zgroup")
MOST_UNPACKED = 2**38  # bytes of all entries of a zip file
MOST_RATIO = 100  # of them to the file's own; the chunks in it are compressed already, so that it is about one
SMALL = 2**26  # bytes up to which the ratio does not matter


def is_zarr(path: Path) -> bool:
    """Whether a folder is a .zarr store, or a file a zipped one, by its name and what it holds."""
    if path.is_dir():
        return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))
    return path.name.lower().endswith(".zarr.zip")


def open_zarr(path: Path) -> tuple[Any, Sizes]:
    """Open a store, to be read.

    Returns
    -------
    tuple
        The group, and the bytes in memory of each array by name.
    """
    import zarr
    from zarr.storage import LocalStore, ZipStore

    # Consolidated metadata are read as a whole, and one array of a newer zarr among them would close the store.
    if path.is_dir():
        group = zarr.open_group(LocalStore(path, read_only=True), mode="r", use_consolidated=False)
        names = set(_nodes(path))
    else:
        root, entries = _check_zip(path)
        group = zarr.open_group(ZipStore(path, mode="r"), path=root, mode="r", use_consolidated=False)
        names = {e.removeprefix(root).strip("/").rpartition("/")[0] for e in entries if e.endswith(NODES)}
    sizes: Sizes = {}
    unreadable: tuple[str, ...] = ()
    if len(names) > MOST_OBJECTS:
        raise DataError(f"{path.name} holds more than {MOST_OBJECTS:,} arrays and groups")
    for name in sorted(names - {"", "."}):
        if name.startswith(unreadable):
            continue
        try:
            sizes |= _size(group[name], "/" + name, path.name)
        except DataError:
            raise
        except Exception:  # of a newer zarr than this
            if "uns" not in name.split("/")[:-1]:
                raise
            # All of this entry of uns is left out, since reading a group opens all that is in it.
            head, _, tail = name.partition("uns/")
            unreadable += (head + "uns/" + tail.split("/")[0],)
    return group, {k: v for k, v in sizes.items() if not k[1:].startswith(unreadable)}


def _nodes(root: Path) -> Iterator[str]:
    """Name the groups and arrays of a folder, without a look at their chunks."""
    n = 0
    for where, folders, files in os.walk(root, followlinks=True):
        if not set(files) & set(NODES):
            continue
        n += 1
        if n > MOST_OBJECTS:
            raise DataError(f"{root.name} holds more than {MOST_OBJECTS:,} arrays and groups")
        yield Path(where).relative_to(root).as_posix()
        is_array = ".zarray" in files or (
            "zarr.json" in files and json.loads(Path(where, "zarr.json").read_bytes())["node_type"] == "array"
        )
        if is_array:
            folders.clear()


def _size(node: Any, at: str, name: str) -> Sizes:
    """Return the bytes of an array; refuse what could run code or take all memory."""
    if not hasattr(node, "chunks"):
        return {}
    if any(getattr(codec, "codec_id", "") == "pickle" for codec in (*node.filters, *node.compressors)):
        raise DataError(f"{name} holds pickled objects, {at!r}, which could run code; write it anew")
    item = TEXT if node.dtype.hasobject or node.dtype.kind == "T" else node.dtype.itemsize
    chunk = math.prod(node.chunks) * item
    if chunk > max(2**28, 4 * node.size * item) or chunk > available():
        raise DataError(f"{name}: {at!r} has chunks of {chunk / 1e9:,.1f} GB; it is damaged")
    return {at: node.size * item}


def _check_zip(path: Path) -> tuple[str, list[str]]:
    """Return where in the zip file the store begins, and the names of its entries."""
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    unpacked, packed = sum(e.file_size for e in entries), path.stat().st_size
    largest = max((e.file_size for e in entries), default=0)
    if unpacked > MOST_UNPACKED or largest > available() or unpacked > max(SMALL, MOST_RATIO * packed):
        raise DataError(
            f"{path.name} would unpack from {packed / 1e6:,.1f} to {unpacked / 1e6:,.1f} MB, and is not opened; "
            "if you trust it, unpack it and open the folder"
        )
    for entry in entries:
        if entry.filename.startswith(("/", "\\")) or ".." in entry.filename.replace("\\", "/").split("/"):
            raise DataError(f"{path.name} holds an entry that leads out of it, {entry.filename!r}, and is not opened")
    roots = [
        e.filename.rpartition("/")[0] for e in entries if e.filename.rpartition("/")[2] in ("zarr.json", ".zgroup")
    ]
    if not roots:
        raise DataError(f"{path.name} holds no .zarr store: it has neither zarr.json nor .zgroup")
    return min(roots, key=len), [e.filename for e in entries]
