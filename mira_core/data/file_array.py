"""Arrays on the disk of which stretches are read, without mapping the file.

A memory map would be simpler, but the system maps up to megabytes around each page that is touched, and all of it
counts as the process's memory; reading is as fast, and takes what it returns.
"""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from ..errors import DataError


class FileArray:
    """A one-dimensional array in a raw binary file.

    Parameters
    ----------
    path, dtype
        The file, and what it holds.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.dtype = dtype
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - open as long as the array lives
        self._lock = threading.Lock()

    def __del__(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return os.fstat(self._file.fileno()).st_size // self.dtype.itemsize

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return the stretches one after the other; those that touch in the file are read at once."""
        size = self.dtype.itemsize
        out = np.empty(int(lengths.sum()), self.dtype)
        view = memoryview(out).cast("B")
        apart = np.flatnonzero(starts[1:] != starts[:-1] + lengths[:-1]) + 1
        edges = np.append(0, np.cumsum(lengths)) * size
        with self._lock:
            for first, after in itertools.pairwise([0, *apart.tolist(), len(starts)]):
                if edges[first] < edges[after]:
                    self._file.seek(int(starts[first]) * size)
                    self._read_into(view[edges[first] : edges[after]])
        return out

    def _read_into(self, target: memoryview) -> None:
        done = 0
        while done < len(target):  # a single call reads 2 GB at most
            n = self._file.readinto(target[done:])
            if not n:
                raise OSError(f"{self._file.name} ends too early; was it changed?")
            done += n


class StoredRows:
    """Compressed sparse rows on the disk, of which some are read as scipy would index them.

    Parameters
    ----------
    indptr
        Where each row begins, and where the last one ends.
    indices, values
        Column and value of each non-zero.
    n_columns
        Columns in all.
    """

    def __init__(self, indptr: np.ndarray, indices: FileArray, values: FileArray, n_columns: int) -> None:
        self.indptr, self.indices, self.values = indptr, indices, values
        self.shape = (len(indptr) - 1, n_columns)

    def __getitem__(self, rows: np.ndarray) -> sp.csr_array:
        """Read some rows."""
        starts = self.indptr[rows]
        lengths = self.indptr[rows + 1] - starts
        values, indices = (a.gather(starts, lengths) for a in (self.values, self.indices))
        # Compiled code follows them without looking; as unsigned numbers negative ones are large.
        if len(indices) and indices.view(np.uint32).max() >= self.shape[1]:
            raise DataError("the data set on the disk is damaged: it has counts of features that it does not name")
        edges = np.append(0, np.cumsum(lengths))
        return sp.csr_array((values, indices, edges), shape=(len(rows), self.shape[1]))
