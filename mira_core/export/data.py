"""The cells of a run with all results, as .h5ad or .zarr."""

from __future__ import annotations

import json
import secrets
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np

from .. import environment
from ..data import formats, sources
from ..data.counts import CountMatrix
from ..errors import DataError, OptionError
from ..files import move_into_place
from ..running import parts
from .run import FinishedRun
from .what import FORMATS

LEFT = ("obs", "var")  # of a file that is copied: those of the results stand in their place


def export_data(run: FinishedRun, path: Path) -> None:
    """Write the prepared cells with their counts and all that the model says of them.

    ``X``, layers and whatever else the data hold are as the run saw them, its recipe done. Added are what `predict`
    writes (``obs['topic_0']``, ..., ``obsm['X_topic_compositions']``, ``obsm['X_umap_features']``,
    ``varm['topic_feature_compositions']``, ``varm['topic_feature_activations']``, ``uns['topic_dendogram']``),
    ``obsm['X_umap']`` and ``uns['mira']``: how it came about, as text and JSON.

    Parameters
    ----------
    run
        Whose.
    path
        ``.h5ad`` or ``.zarr``; written beside and renamed, must not exist. An .h5ad file that no recipe changed is
        copied on the disk; of its counts those of the modelled features are in memory once, for their digest.

    Raises
    ------
    DataError
        If the data are gone or have changed since.
    OptionError
        If the path ends otherwise.
    """
    if path.suffix[1:] not in FORMATS:
        raise OptionError(f"cells are exported as .h5ad or .zarr; got {path.name}")
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    data = run.open_cells_lightly()
    cells = results(run, parts.data_digest(run.model, data))
    try:
        if path.suffix == ".h5ad" and (source := _can_be_copied(run)) is not None:
            _copy(source, cells, beside)
        elif isinstance(data, sources.OnDiskDataset):
            _write_from_disk(run, data, cells, beside)
        else:
            _write(_joined(data if run.is_prepared else run.open_cells(), cells), beside)
        move_into_place(beside, path)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        beside.unlink(missing_ok=True)


def results(run: FinishedRun, digest: str) -> ad.AnnData:
    """Return what a run found, with how it came about, without counts.

    Raises
    ------
    DataError
        If the cells have changed since.
    """
    run.check_digest(digest)
    cells = run.cells.copy()
    cells.uns["mira"] = provenance(run, digest)
    return cells


def provenance(run: FinishedRun, digest: str) -> dict[str, Any]:
    """Return how a run came about, as ``uns`` holds it: text, and JSON where there is more to say."""
    model, with_ = run.model, run.computed_with
    return {
        "run": run.name,
        "kind": run.spec["kind"],
        "data": run.data_name,
        "digest": digest,
        "created": run.created,
        "exported": time.strftime("%Y-%m-%d %H:%M"),
        "seed": str(model.seed_used),
        "epochs": len(run.history),
        "options": json.dumps(model.get_params()),
        "options_given": json.dumps(model.given),
        "recipe": run.recipe.to_json(),
        "test_size": str(run.spec.get("test_size") or 0),
        "versions": json.dumps(with_["versions"]),
        "computed_with": json.dumps({k: v for k, v in with_.items() if k != "versions"}),
        "exported_with": environment.versions()["mira-topics"],
    }


def _can_be_copied(run: FinishedRun) -> Path | None:
    """Return the file whose groups can be copied as they are, None if there is none."""
    if run.is_prepared:
        return None
    path, part = formats.split_part(run.spec["data"])
    if path.suffix != ".h5ad" or part is not None or not path.is_file():
        return None
    with h5py.File(path) as f:
        return path if f.attrs.get("encoding-type") == "anndata" else None


def _copy(source: Path, cells: ad.AnnData, path: Path) -> None:
    with h5py.File(source) as old, h5py.File(path, "w") as new:
        for name, value in old.attrs.items():
            new.attrs[name] = value
        for name in old:
            if name not in LEFT:
                old.copy(name, new)
        ad.io.write_elem(new, "obs", cells.obs)
        ad.io.write_elem(new, "var", cells.var)
        for group in ("obsm", "varm", "uns"):
            if group not in new:
                ad.io.write_elem(new, group, {})
            for key, value in getattr(cells, group).items():
                ad.io.write_elem(new[group], key, value)


def _joined(data: ad.AnnData, cells: ad.AnnData) -> ad.AnnData:
    data.obs, data.var = cells.obs, cells.var
    for group in ("obsm", "varm", "uns"):
        getattr(data, group).update(getattr(cells, group))
    return data


def _write(data: ad.AnnData, path: Path) -> None:
    try:
        if path.suffix == ".zarr":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Writing zarr v2 data")  # which older programs read, too
                data.write_zarr(path)
        else:
            data.write_h5ad(path, compression="gzip", compression_opts=1)
    except OSError:  # the disk is full
        raise
    except Exception as problem:  # a column of mixed types, or of names that a file cannot hold
        raise DataError(f"the cells cannot be written as {path.suffix}: {problem}") from problem


def _write_from_disk(run: FinishedRun, data: sources.OnDiskDataset, cells: ad.AnnData, path: Path) -> None:
    """Write the modelled features, which are all that such a folder has."""
    layer = run.model.get_params()["counts_layer"]
    out = _joined(data.table(), cells)
    if path.suffix == ".zarr":
        counts = data.counts().to_csr()
        if layer is None:
            out.X = counts
        else:
            out.layers[layer] = counts
        _write(out, path)
        return
    _write(out, path)
    add_counts(path, data.counts(), layer)


def add_counts(path: Path, counts: CountMatrix, layer: str | None) -> None:
    """Add counts to an .h5ad file without any, a part at a time, as whole numbers (CSR)."""
    with h5py.File(path, "r+") as f:
        parent, name = (f, "X") if layer is None else (f.require_group("layers"), layer)
        if name in parent:
            del parent[name]
        group = parent.create_group(name)
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": counts.shape})
        starts = np.append(0, np.cumsum(counts.lengths))
        n = int(starts[-1])
        group["indptr"] = starts.astype(np.int64 if n >= 2**31 else np.int32)
        made = {
            key: group.create_dataset(
                key, (n,), np.int32, chunks=(min(n, 2**16),), compression="gzip", compression_opts=1, shuffle=True
            )
            for key in ("indices", "data")
        }
        at = 0
        for m in counts.csr_chunks():
            made["indices"][at : at + m.nnz] = m.indices
            made["data"][at : at + m.nnz] = m.data
            at += m.nnz
