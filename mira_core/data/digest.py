"""A digest of counts: the same for the same cells, features and counts, however and wherever they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from .counts import CountMatrix

FORMAT = b"mira counts 1\n"


def digest(counts: CountMatrix, cells: Iterable[Any], features: Iterable[Any]) -> str:
    r"""Return a SHA-256 over counts and names, in 64 hexadecimal digits.

    It is that of ``b"mira counts 1\n"`` followed by five SHA-256 (32 bytes each): of the cells' names, of the
    features' names (each name its length in bytes of UTF-8 as uint32, then those bytes), of the numbers of non-zeros
    of each cell (uint64), of the non-zeros' features (uint32, ascending within a cell, counted from 0), and of the
    non-zero counts (uint32), cell after cell; integers little-endian. So sparse or dense, the type of the numbers,
    explicit zeros, the order of non-zeros and the format of a file do not matter; the order of cells and features
    does.

    Parameters
    ----------
    counts
        Of cells by features; read once, a part at a time.
    cells, features
        Their names.

    Raises
    ------
    ValueError
        If there are not as many names as cells and features.
    """
    lengths, indices, values = (hashlib.sha256() for _ in range(3))
    lengths.update(counts.lengths.astype("<u8").tobytes())
    for m in counts.csr_chunks():
        indices.update(m.indices.astype("<u4").tobytes())
        values.update(m.data.astype("<u4").tobytes())
    whole = hashlib.sha256(FORMAT)
    for names, n in ((cells, counts.shape[0]), (features, counts.shape[1])):
        whole.update(_of_names(names, n))
    for part in (lengths, indices, values):
        whole.update(part.digest())
    return whole.hexdigest()


def _of_names(names: Iterable[Any], n: int) -> bytes:
    out, seen = hashlib.sha256(), 0
    for name in names:
        encoded = str(name).encode("utf-8", "surrogatepass")
        out.update(np.uint32(len(encoded)).astype("<u4").tobytes() + encoded)
        seen += 1
    if seen != n:
        raise ValueError(f"there must be {n} names; got {seen}")
    return out.digest()
