"""Bounds on what a file may ask for, so that none takes the machine's memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from ...errors import DataError

TEXT = 80  # bytes that a text takes in memory, about


def available() -> int:
    """Bytes of memory that this process may still take."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()  # of a container or a scheduler's job
    except OSError:
        return free
    return min(free, int(limit)) if limit.isdigit() else free


def refuse_too_large(name: str, size: int) -> None:
    """Raise if so many bytes do not fit into memory."""
    if size > (free := available()):
        raise DataError(
            f"{name} takes {size / 1e9:,.1f} GB when it is read, and {free / 1e9:,.1f} GB of memory are free. "
            "Write .h5ad files on the disk in the form that training reads, by the model's write_ondisk_dataset, or "
            "use a machine with more memory. A small file that claims to be large is damaged or meant to do harm"
        )


def check_pointers(pointers: np.ndarray, n: int, n_stored: int, where: str) -> None:
    """Raise unless what tells where `n` rows (or columns) begin is within what is stored.

    scipy's own check passes over those between the first and the last where the last is 0.
    """
    ok = pointers.shape == (n + 1,) and pointers.dtype.kind in "iu" and pointers[0] == 0 and pointers[-1] <= n_stored
    if not ok or (pointers[1:] < pointers[:-1]).any():
        raise DataError(f"{where} is no sparse matrix, its indices are wrong: those of where its rows begin")


def checked(matrix: sp.spmatrix | sp.sparray, where: str) -> sp.spmatrix | sp.sparray:
    """Return a compressed matrix whose indices are in bounds: compiled code follows them without looking."""
    check_pointers(matrix.indptr, matrix.shape[0 if matrix.format == "csr" else 1], len(matrix.indices), where)
    try:
        matrix.check_format(full_check=True)
    except ValueError as problem:
        raise DataError(f"{where} is no sparse matrix, its indices are wrong: {problem}") from problem
    return matrix
