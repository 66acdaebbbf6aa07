"""What a path says: the file, the part of it, and what can be done with a file that holds no counts."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

from ...errors import DataError

READ = ".h5ad, .h5mu, .loom, 10x .h5, .zarr, .zarr.zip, or a folder with matrix.mtx"
INTERVALS = (".tsv", ".bed", ".narrowpeak", ".bedpe", ".txt")
ADVICE = {
    ".rds": "Save it from R as .h5ad, for example by zellkonverter::writeH5AD",
    ".rdata": "Save it from R as .h5ad, for example by zellkonverter::writeH5AD",
    ".h5seurat": "Convert it to .h5ad, for example by SeuratDisk::Convert",
    ".csv": "Read it by anndata.io.read_csv, see that cells are rows, and write it as .h5ad",
    ".bam": "Count it first, for example with Cell Ranger",
    ".zip": "Unpack it first; a zipped .zarr must be named .zarr.zip",
    ".tar": "Unpack it first",
    ".tgz": "Unpack it first",
    ".gz": "Unpack it first",
}


def split_part(data: str | Path) -> tuple[Path, str | None]:
    """Return the path and the part that may follow it after ``#``; a path that exists as it stands has none."""
    text = str(data)
    if not os.path.exists(text):
        at = text.find("#", 1)
        while at > 0:
            if os.path.exists(text[:at]):
                return Path(text[:at]), text[at + 1 :] or None
            at = text.find("#", at + 1)
    return Path(text), None


def join_part(path: str | Path, part: str | None) -> str:
    """Return path and part in one, as `split_part` reads them."""
    return str(path) if part is None else f"{path}#{part}"


def no_counts(path: Path) -> DataError:
    """Return the error for a file of another format, with what to do."""
    plain = path.name.lower().removesuffix(".gz")
    if plain.endswith(INTERVALS) and (fields := _first_fields(path)) is not None:
        if len(fields) in (4, 5) and "peak" not in plain:
            return DataError(
                f"{path.name} is a fragments file: it lists where each cell's DNA was cut, and is not yet counts. "
                "Count it in peaks, for example by snapatac2.pp.make_peak_matrix, Signac's FeatureMatrix or "
                "cellranger-atac, and open the matrix of cells and peaks that this gives"
            )
        return DataError(
            f"{path.name} lists intervals of the genome, such as peaks, and has no counts. "
            "Count each cell's fragments in them, and open the matrix of cells and peaks"
        )
    advice = next((ADVICE[end] for end in ADVICE if plain.endswith(end) or path.suffix.lower() == end), "")
    return DataError(f"data must be {READ}; got {path.name}{'. ' + advice if advice else ''}")


def _first_fields(path: Path) -> list[bytes] | None:
    """Return the fields of the first line if they are an interval."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as f:
            for _ in range(1000):
                line = f.readline(10_000)
                if not line.startswith((b"#", b"track", b"browser")):
                    break
    except (OSError, EOFError, zlib.error):
        return None
    fields = line.rstrip(b"\r\n").split(b"\t")
    return fields if len(fields) >= 3 and fields[1].isdigit() and fields[2].isdigit() else None
