"""What a file holds, and opening it."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import anndata as ad

from ...errors import DataError
from . import elements, hdf5, tenx, zarr_files
from .hdf5 import reading
from .paths import no_counts, split_part

HDF5 = (".h5ad", ".h5mu", ".h5", ".hdf5", ".loom")
KINDS = {
    "h5mu": "modality",
    "10x h5": "type of features",
    "10x h5, version 2": "genome",
    "10x folder": "type of features",
}


@dataclass(frozen=True)
class Part:
    """One data set of a file; `name` is None where the file is one."""

    name: str | None
    n_cells: int
    n_features: int


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes
    ----------
    format
        ``h5ad``, ``h5mu``, ``zarr``, ``10x h5``, ``10x h5, version 2``, ``10x folder`` or ``loom``.
    kind
        What its parts are, in words.
    parts
        The data sets of which one is opened; the names are what `open_data` takes as `part`.
    """

    format: str
    kind: str
    parts: tuple[Part, ...]

    def names(self) -> list[str]:
        """Names among which one must choose; none if the file is one data set."""
        return [p.name for p in self.parts if p.name is not None] if len(self.parts) > 1 else []

    def choose(self, part: str | None, where: str) -> str | None:
        """Return the name of the part to open.

        Raises
        ------
        DataError
            If there is none of this name, or one must be chosen.
        """
        names = [p.name for p in self.parts if p.name is not None]
        choices = ", ".join(repr(n) for n in names)
        if part is not None and part not in names:
            raise DataError(
                f"{where} has no {self.kind} {part!r}; choose one of {choices}"
                if names
                else f"{where} is one data set, with no parts to choose {part!r} from"
            )
        if part is None and len(names) > 1:
            raise DataError(
                f"{where} holds {len(names)} data sets; choose a {self.kind}: {choices}. "
                f"Give it as part={names[0]!r}, or after the path: {where}#{names[0]}"
            )
        return part if part is not None or not names else names[0]


def is_data(path: Path) -> bool:
    """Whether a file or folder has the name, or a folder the files, of a format that is read; nothing is opened."""
    if path.is_dir():
        return zarr_files.is_zarr(path) or any(tenx.MATRIX.fullmatch(p.name) for p in path.iterdir())
    return path.suffix.lower() in HDF5 or zarr_files.is_zarr(path)


def stamp(path: Path) -> tuple[int, int]:
    """Return what changes when the file does: time and size; of a folder, of the files right in it."""
    infos = [path.stat(), *(p.stat() for p in path.iterdir() if p.is_file())] if path.is_dir() else [path.stat()]
    return max(i.st_mtime_ns for i in infos), sum(i.st_size for i in infos)


def contents(path: str | Path) -> Contents:
    """Tell format, parts and sizes of a file or folder, without reading counts.

    Parameters
    ----------
    path
        Of a file or folder. What follows a ``#`` is passed over.

    Raises
    ------
    DataError
        If it does not exist, is damaged, or is of another format; the message says what to do.
    """
    path, _ = split_part(path)
    where = _existing(path)
    with reading(where):
        if where.is_dir() and not zarr_files.is_zarr(where):
            files = _matrix_files(where)
            return _of_types("10x folder", *tenx.types_folder(files))
        if zarr_files.is_zarr(where):
            return _of_groups("zarr", zarr_files.open_zarr(where)[0])
        file, sizes = hdf5.open_hdf5(where)
        with file:
            form = _form(file, where)
            if form == "10x h5":
                return _of_types(form, *tenx.types_h5(file, sizes))
            if form == "10x h5, version 2":
                names = hdf5.genomes(file)
                parts = (Part(n, len(file[n]["barcodes"]), len(file[n]["genes"])) for n in names)
                return Contents(form, KINDS[form], tuple(parts))
            if form == "loom":
                return Contents(form, "", (Part(None, *hdf5.loom_shape(file)),))
            return _of_groups(form, file)


def open_file(
    data: str | Path, *, backed: bool = False, part: str | None = None, only_counts: bool = False
) -> ad.AnnData:
    """Read a data set from a file or folder of any format.

    Parameters
    ----------
    data
        Its path, which may end in ``#`` and the part.
    backed
        Leave X, layers and raw on the disk, where the format allows it: .h5ad, .h5mu and .zarr.
    part
        The modality, genome or type of features.
    only_counts
        Read nothing but obs, var, X and layers.

    Raises
    ------
    DataError
        If it does not exist, is damaged or hostile, does not fit into memory, is of another format, or a part must
        be chosen.
    """
    path, named = split_part(data)
    part = part if part is not None else named
    path = _existing(path)
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files and repeated names; names are checked where they matter
        return elements.check_tables(elements.check_matrices(_open(path, part, backed, only_counts)))


def _open(path: Path, part: str | None, backed: bool, only_counts: bool) -> ad.AnnData:
    told = contents(path)
    part = told.choose(part, path.name)
    if told.format == "10x folder":
        return tenx.read_folder(_matrix_files(path), part)
    is_zarr = told.format.startswith("zarr")
    file, sizes = zarr_files.open_zarr(path) if is_zarr else hdf5.open_hdf5(path)
    try:
        if told.format == "loom":
            return hdf5.read_loom(file, sizes)
        if told.format == "10x h5":
            return tenx.read_h5(file, sizes, part)
        if told.format == "10x h5, version 2":
            return tenx.read_h5_of_version_2(file, sizes, str(part))
        elements.check_room(path.name, sizes, f"/mod/{part}" if part is not None else "", backed=backed)
        if told.format == "h5ad" and elements.is_old(file):
            return ad.read_h5ad(path, backed="r" if backed else None)
        if part is None:
            return elements.read_group(file, sizes, backed=backed, only_counts=only_counts)
        return elements.read_modality(file, sizes, part, backed=backed, only_counts=only_counts)
    finally:
        if not backed and not is_zarr:
            file.close()  # else it is open as long as something of it is in use


def _existing(path: Path) -> Path:
    if not os.path.exists(path):
        raise DataError(f"there is no file {path}")
    if path.is_file() and path.name.lower().endswith(("matrix.mtx", "matrix.mtx.gz")):
        return path.resolve().parent if path.parent == Path() else path.parent
    if path.is_file() and not is_data(path):
        raise no_counts(path)
    return path


def _matrix_files(folder: Path) -> dict[str, Path]:
    files = tenx.find_matrix(folder)
    if files is None and (folder / "dataset.json").is_file():
        raise DataError(f"{folder} is of write_ondisk_dataset; give its path to the model's methods, as it is")
    if files is None:
        raise DataError(
            f"{folder} is no data set: it has neither matrix.mtx with its names (10x), nor zarr.json or .zgroup "
            "(.zarr), nor dataset.json (write_ondisk_dataset)"
        )
    return files


def _form(file: hdf5.h5py.File, path: Path) -> str:
    form = hdf5.format_of_hdf5(file)
    if form is None:
        some = ", ".join(list(file)[:8]) or "nothing"
        raise DataError(
            f"{path.name} is an HDF5 file of another kind: it holds {some}. Read are AnnData, MuData, loom, and the "
            "matrices of Cell Ranger (filtered_feature_bc_matrix.h5)"
        )
    return form


def _of_types(form: str, n_cells: int, types: tenx.Types) -> Contents:
    return Contents(form, KINDS[form], tuple(Part(name, n_cells, n) for name, n in types.items()))


def _of_groups(form: str, file: object) -> Contents:
    if "mod" in file:  # type: ignore[operator]
        parts = tuple(Part(name, *shape) for name, shape in elements.modalities(file).items())
        return Contents("h5mu" if form == "h5mu" else "zarr, MuData", KINDS["h5mu"], parts)
    return Contents(form, "", (Part(None, *elements.shape_of(file)),))
