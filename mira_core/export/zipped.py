"""Folders as .zip."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO

PACKED = (".h5ad", ".png", ".safetensors")  # compressed already, or hardly to be compressed


def write_zip(folder: Path, out: BinaryIO) -> None:
    """Write the files of a folder as .zip, below its name, to a file or a stream that cannot seek; little is in memory.

    Parameters
    ----------
    folder
        Links in it are passed over.
    out
        Written to from where it is.
    """
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=3, strict_timestamps=False) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                name = (Path(folder.name) / path.relative_to(folder)).as_posix()
                archive.write(path, name, zipfile.ZIP_STORED if path.suffix in PACKED else None)
