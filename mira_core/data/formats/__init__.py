"""Files as users bring them: which format one has, what can be chosen of it, and how it becomes an AnnData.

=====================  =====================================================================================
.h5ad                  of any anndata, whatever the file's suffix
.h5mu                  a modality must be chosen if there are several; the same for a MuData in .zarr
.zarr, .zarr.zip       folders and zip files of AnnData or MuData
10x .h5                Cell Ranger 2 (a genome is chosen) and later (a type of features), and what has its form
10x matrix folder      matrix.mtx, barcodes.tsv, and features.tsv, genes.tsv or peaks.bed, each also as .gz
.loom
=====================  =====================================================================================

A choice may follow the path: ``cells.h5mu#rna``. Files are taken for hostile: see `hdf5`, `zarr_files`, `tenx`.
"""

from .contents import Contents, Part, contents, is_data, open_file, stamp
from .elements import plain
from .limits import checked
from .paths import join_part, split_part
from .zarr_files import is_zarr

__all__ = [
    "Contents", "Part", "checked", "contents", "is_data", "is_zarr", "join_part", "open_file", "plain", "split_part",
    "stamp",
]  # fmt: skip
